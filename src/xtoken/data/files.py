"""Reading rows out of local files, with the place of whatever is wrong in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xtoken.errors import DataError

JSON_LINES = (".jsonl", ".ndjson", ".json")
PLAIN_TEXT = (".txt", ".text", ".md")
PARQUET = (".parquet",)
SUFFIXES = (*JSON_LINES, *PLAIN_TEXT, *PARQUET)
# Read as one plain text, these would train a model on markup or noise.
REFUSED = (".csv", ".tsv", ".arrow", ".xlsx", ".zip", ".tar", ".bz2", ".xz", ".zst", ".bin", ".pt")

# (row, where it stands, bytes of the file read so far)
Row = tuple[Any, str, int]


def kind_of_file(path: Path) -> str | None:
    """Return the suffix that says how to read a file, without .gz; None: not a data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_file(path: Path, encoding: str) -> Iterator[Row]:
    """Yield the rows of a file; a plain text file is one row, {"text": the whole file}.

    Raises:
        DataError: it can't be read, is empty, or holds broken JSON or undecodable bytes.
    """
    suffix = kind_of_file(path)
    if suffix is None and path.suffix.lower() in REFUSED:
        raise DataError(
            f"{path} can't be read as data; expected a file ending in {', '.join(SUFFIXES)}, or "
            "one of these with .gz"
        )
    try:
        if suffix in PARQUET:
            yield from _read_parquet(path)
        elif suffix in JSON_LINES:
            yield from _read_json(path, encoding)
        else:
            yield from _read_text(path, encoding)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is no complete gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked if its name ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def decode(data: bytes, encoding: str, path: Path, offset: int = 0, line: int = 0) -> str:
    """Decode bytes that stand at byte `offset` of a file (on line `line`, if it has lines).

    Raises:
        DataError: naming the byte, its position and what may help.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"{path}, line {line}" if line else str(path)
        hint = (
            "If the file is in another encoding, name it (data.encoding: cp1252 for Windows text)"
            if encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig", "ascii")
            else "Name the file's encoding in data.encoding"
        )
        raise DataError(
            f"{place}: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not "
            f"valid {encoding} ({error.reason}). {hint}, or convert it to UTF-8"
        ) from None


def _read_text(path: Path, encoding: str) -> Iterator[Row]:
    with open_file(path) as file:
        data = file.read()
    text = decode(data, encoding, path).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path} is empty; expected text")
    yield {"text": text}, str(path), len(data)


def _read_json(path: Path, encoding: str) -> Iterator[Row]:
    with open_file(path) as file:
        head = file.read(256)
    if head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n").startswith("["):
        yield from _read_array(path, encoding)
        return
    empty = True
    for line, number, offset in _lines(path, encoding):
        if not line or line.isspace():
            continue
        empty = False
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: broken JSON at column {error.pos + 1}: {error.msg}; expected one JSON "
                "object a line"
            ) from None
        yield row, where, offset
    if empty:
        raise DataError(f"{path} is empty; expected one JSON object a line")


def _lines(path: Path, encoding: str) -> Iterator[tuple[str, int, int]]:
    """Yield (line, its number from 1, byte offset behind it)."""
    if "\n".encode(encoding) != b"\n":  # UTF-16 and UTF-32: line ends are not single bytes
        with open_file(path) as file:
            data = file.read()
        text = decode(data, encoding, path).removeprefix("\ufeff")
        for number, line in enumerate(text.split("\n"), start=1):
            yield line, number, len(data)
        return
    offset = 0
    with open_file(path) as file:
        for number, data in enumerate(file, start=1):
            line = decode(data, encoding, path, offset, number)
            offset += len(data)
            yield line.removeprefix("\ufeff") if number == 1 else line, number, offset


def _read_array(path: Path, encoding: str) -> Iterator[Row]:
    with open_file(path) as file:
        data = file.read()
    try:
        rows = json.loads(decode(data, encoding, path).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}"
        ) from None
    if not rows:
        raise DataError(f"{path} is empty; expected a list of objects")
    for index, row in enumerate(rows):
        yield row, f"{path}, row {index + 1}", len(data) * (index + 1) // len(rows)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty; expected a Parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if rows == 0:
                raise DataError(f"{path} has no rows")
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    index += 1
                    yield row, f"{path}, row {index}", size * index // rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}") from error
