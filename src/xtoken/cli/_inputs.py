"""What verbs read: vocabularies by name, texts by file."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtoken.cli._output import doing
from xtoken.errors import DataError, UsageError

if TYPE_CHECKING:
    from xtoken.data.records import Record
    from xtoken.vocab import Vocabulary

# Files of rows; everything else is taken for one plain text.
TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".gz")


def vocabulary(name: str, *, trust_remote_code: bool = False) -> Vocabulary:
    """Read the vocabulary of a hub name, directory or .gguf file."""
    from xtoken.vocab import Vocabulary

    with doing(f"Reading the tokenizer of {name}"):
        return Vocabulary.from_pretrained(name, trust_remote_code=trust_remote_code)


def read_texts(paths: Sequence[str], encoding: str = "utf-8") -> list[str]:
    """Read texts: one a plain text file (`-` is standard input), one a row of JSONL or parquet.

    Raises UsageError for a path that is no file or an unknown encoding, DataError for an empty
    file, bytes that the encoding doesn't have, or rows without text.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise UsageError(
            f"--encoding is {encoding!r}; expected an encoding that Python knows, such as utf-8 or "
            "cp1252."
        ) from None
    return [text for path in paths for text in _read(path, encoding)]


def _read(name: str, encoding: str) -> list[str]:
    if name == "-":
        return [_decode(sys.stdin.buffer.read(), "standard input", encoding)]
    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"{name} is a directory; expected a text file.")
    if not path.exists():
        raise UsageError(f"There is no file {name}; expected a text file.")
    if path.suffix.lower() not in TABLES:
        return [_decode(path.read_bytes(), name, encoding)]
    from xtoken.data.sources import read_records

    return [text for record in read_records([path], encoding=encoding) for text in _texts(record)]


def _texts(record: Record) -> list[str]:
    """Return a record's text; of a chat, what its messages say."""
    if record.kind == "text":
        return [record.text]
    if record.kind == "prompt_completion":
        return [record.prompt + record.completion]
    said = [message.get("content") for message in record.messages]
    return [text for text in said if isinstance(text, str)]


def _decode(data: bytes, shown: str, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{shown} is not {encoding}: byte {error.start} (line {line}) is "
            f"0x{data[error.start]:02x}. Name its encoding, such as --encoding cp1252."
        ) from None
    if not text.strip():
        raise DataError(f"{shown} is empty; expected some text.")
    return text.removeprefix("\ufeff")
