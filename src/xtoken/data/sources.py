"""Where training data comes from: files, folders, and names of `datasets`.

    for record in read_records(["train.jsonl", "notes.txt"]):
        record.kind, record.where

Formats are found by their columns: `messages`; `prompt` and `completion` (texts, or lists of
messages); `text`. A plain text file is one document.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xtoken.data.files import SUFFIXES, Row, kind_of_file, read_file
from xtoken.data.records import Columns, Format, Record, RowReader
from xtoken.errors import DataError, DataNotFoundError


@dataclass(frozen=True)
class SourceSpec:
    """A file, a folder, a pattern of files (`data/*.jsonl`), or a `datasets` name and split."""

    path: str
    name: str | None = None
    split: str = "train"


class Records:
    """The records of some sources, read as they are asked for; may be gone through again.

    `fraction` tells how much of the sources has been read (0.0 to 1.0).
    """

    def __init__(
        self,
        sources: Sequence[SourceSpec],
        format: Format | Literal["auto"],
        columns: Columns,
        encoding: str,
    ) -> None:
        self.parts = [part for source in sources for part in _parts(source)]
        self.format = format
        self.columns = columns
        self.encoding = encoding
        self.fraction = 0.0

    def __iter__(self) -> Iterator[Record]:
        sizes = [part.size for part in self.parts]
        whole = max(sum(sizes), 1)
        before = 0
        for part, size in zip(self.parts, sizes, strict=True):
            self.fraction = before / whole
            format = self.format
            plain = isinstance(part, _File) and part.is_plain_text
            if plain and format != "auto" and format != "text":
                raise DataError(
                    f"{part.path} is plain text, but data.format is {format}; expected JSONL or "
                    "Parquet with its columns"
                )
            reader = RowReader("text" if plain else format, Columns() if plain else self.columns)
            for row, where, read in part.rows(self.encoding):
                self.fraction = min((before + read) / whole, 1.0)
                yield reader.read(row, where)
            before += size
        self.fraction = 1.0


def read_records(
    sources: str | os.PathLike[str] | SourceSpec | Sequence[Any],
    *,
    format: Format | Literal["auto"] = "auto",
    columns: Columns | None = None,
    encoding: str = "utf-8",
) -> Records:
    """Return the records of one or more sources, in order.

    Args:
        sources: paths (JSONL, JSON, Parquet, plain text, .gz of them; a folder; a pattern),
            `datasets` names, or `SourceSpec`s.
        format: "auto" finds each source's format by the columns of its first row.
        columns: the columns' names.
        encoding: of text and JSON files.

    Raises:
        DataError: a source that isn't there, at once; what is wrong inside one, with its file and
            line, when it is reached.
    """
    if isinstance(sources, str | os.PathLike | SourceSpec):
        sources = [sources]
    specs = [
        source if isinstance(source, SourceSpec) else SourceSpec(os.fspath(source))
        for source in sources
    ]
    if not specs:
        raise DataError("No source of data was given; expected at least one file or name")
    return Records(specs, format, columns or Columns(), encoding)


@dataclass(frozen=True)
class _File:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def is_plain_text(self) -> bool:
        return kind_of_file(self.path) in (None, ".txt", ".text", ".md")

    def rows(self, encoding: str) -> Iterator[Row]:
        yield from read_file(self.path, encoding)


@dataclass(frozen=True)
class _Table:
    """A `datasets.Dataset`; its rows count as one byte each."""

    path: str
    table: Any

    @property
    def size(self) -> int:
        return len(self.table)

    def rows(self, encoding: str) -> Iterator[Row]:
        if not len(self.table):
            raise DataError(f"{self.path} has no rows")
        for index, row in enumerate(self.table):
            yield row, f"{self.path}, row {index + 1}", index + 1


def _parts(source: SourceSpec) -> list[_File | _Table]:
    path = Path(source.path).expanduser()
    if path.is_file():
        return [_File(path)]
    if path.is_dir():
        return _folder(path, source)
    if glob.has_magic(source.path):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [_File(item) for item in found if item.is_file()]
        if not files:
            raise DataError(f"No file matches {source.path}")
        return [*files]
    if kind_of_file(path) or path.is_absolute() or source.path.startswith((".", "~")):
        raise DataNotFoundError(
            f"There is no file {source.path}; paths are relative to the current directory "
            f"({Path.cwd()})"
        )
    return [_hub(source)]


def _folder(path: Path, source: SourceSpec) -> list[_File | _Table]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        import datasets

        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            loaded = _split_of(loaded, source)
        return [_Table(str(path), loaded)]
    files = sorted(item for item in path.rglob("*") if item.is_file() and kind_of_file(item))
    if not files:
        raise DataError(
            f"The folder {path} holds no data files; expected files ending in "
            f"{', '.join(SUFFIXES)}, or a dataset saved with save_to_disk"
        )
    return [_File(item) for item in files]


def _split_of(loaded: Any, source: SourceSpec) -> Any:
    if source.split not in loaded:
        raise DataError(
            f"{source.path} has no split {source.split!r}; it has {', '.join(loaded)}. Name one: "
            "data.train: {path: ..., split: ...}"
        )
    return loaded[source.split]


def _hub(source: SourceSpec) -> _Table:
    import datasets

    name = f"{source.path} ({source.name})" if source.name else source.path
    try:
        table = datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:  # datasets raises a dozen kinds, builders any others
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataNotFoundError(
            f"{name}, split {source.split}, is neither a file nor a folder here, and `datasets` "
            f"can't load it: {reason[0]}. Check the name, split and network, or give a local file"
        ) from error
    return _Table(name, table)
