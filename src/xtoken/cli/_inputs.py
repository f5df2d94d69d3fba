"""What verbs read: vocabularies by name, texts by file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtoken.cli._output import doing
from xtoken.errors import DataError, UsageError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


def vocabulary(name: str, *, trust_remote_code: bool = False) -> Vocabulary:
    """Read the vocabulary of a hub name, directory or .gguf file."""
    from xtoken.vocab import Vocabulary

    with doing(f"Reading the tokenizer of {name}"):
        return Vocabulary.from_pretrained(name, trust_remote_code=trust_remote_code)


def read_texts(paths: Sequence[str], encoding: str = "utf-8") -> list[str]:
    """Read text files, one text a file; `-` is standard input.

    Raises UsageError for a path that is no file or an unknown encoding, DataError for an empty
    file or bytes that the encoding doesn't have.
    """
    return [_read(path, encoding) for path in paths]


def _read(name: str, encoding: str) -> str:
    if name == "-":
        data, shown = sys.stdin.buffer.read(), "standard input"
    else:
        path, shown = Path(name).expanduser(), name
        if path.is_dir():
            raise UsageError(f"{name} is a directory; expected a text file.")
        if not path.exists():
            raise UsageError(f"There is no file {name}; expected a text file.")
        data = path.read_bytes()
    try:
        text = data.decode(encoding)
    except LookupError:
        raise UsageError(
            f"--encoding is {encoding!r}; expected an encoding that Python knows, such as utf-8 or "
            "cp1252."
        ) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{shown} is not {encoding}: byte {error.start} (line {line}) is "
            f"0x{data[error.start]:02x}. Name its encoding, such as --encoding cp1252."
        ) from None
    if not text.strip():
        raise DataError(f"{shown} is empty; expected some text.")
    return text.removeprefix("\ufeff")
