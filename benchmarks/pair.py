"""What the loss benchmarks run on: a pair of real vocabularies, W, aligned text, made-up logits.

Everything is made once and laid into a folder; the contenders' processes map the files, so that
logits and weights of gigabytes are in memory once however many processes wait their turn.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from measuring import ASSETS
from xtoken.align import align
from xtoken.encode import encode_texts
from xtoken.losses import Chunks
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# How far a made-up distribution spreads, and how much likelier the token that comes next is.
SPREAD = 2.0
REALISED = 10.0
NEVER = -1e4
FILL_ROWS = 64


def common_options(parser: argparse.ArgumentParser, *, worker: int) -> None:
    """Add what every script on this pair takes; `worker` is how many words its workers are told."""
    parser.add_argument("--student", default=str(ASSETS / "vocab" / "llama-3"))
    parser.add_argument("--teacher", default=str(ASSETS / "vocab" / "qwen2"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the result to this file")
    parser.add_argument("--worker", nargs=worker, help=argparse.SUPPRESS)


def contenders(given: str | None, default: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the contenders that --only names, or the default ones."""
    names = given.split(",") if given else list(default)
    for name in names:
        if name not in known:
            raise SystemExit(f"Unknown contender {name!r}; expected {', '.join(known)}.")
    return names


@dataclass(frozen=True)
class Case:
    """One aligned sequence of `length` student tokens (about as many of the teacher's)."""

    folder: Path
    length: int
    student: str
    teacher: str
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    student_ends: np.ndarray
    teacher_ends: np.ndarray
    chunk_table: np.ndarray

    @property
    def projection(self) -> Projection:
        """W of the pair."""
        return Projection.load(self.folder / "w.safetensors")

    def vocabularies(self) -> dict[str, Vocabulary]:
        """Return both vocabularies as `make_loss` takes them (a second or two each)."""
        return {
            "student_vocab": Vocabulary.from_pretrained(self.student),
            "teacher_vocab": Vocabulary.from_pretrained(self.teacher),
        }

    def chunks(self, device: str = "cpu") -> Chunks:
        """Return the chunks; row r predicts token r + 1, so the first token is in none."""
        columns = [torch.from_numpy(self.chunk_table[:, i].copy()) for i in range(4)]
        targets = [
            torch.from_numpy(np.append(ids[1:], -1)) for ids in (self.student_ids, self.teacher_ids)
        ]
        return Chunks(*columns, *targets).to(device)

    def logits(self, side: str, device: str) -> Tensor:
        """Map a side's logits [rows, vocabulary]; bf16 on a GPU."""
        size = len(self.student_ids if side == "student" else self.teacher_ids)
        return mapped(self.folder / f"{side}-logits-{self.length}", (size, -1), device)

    @classmethod
    def load(cls, folder: str | Path, length: int) -> Case:
        """Read one case of a folder that `make_cases` filled."""
        arrays = np.load(Path(folder) / f"case-{length}.npz")
        names = json.loads((Path(folder) / "pair.json").read_text())
        return cls(Path(folder), length, names["student"], names["teacher"], **arrays)


def make_cases(
    folder: Path, student: str, teacher: str, lengths: list[int], *, logits: bool
) -> dict[str, Any]:
    """Fill a folder with W and a case for each length; return what the pair is."""
    from bench_align import default_text

    for name in (student, teacher):
        if not Path(name).exists():
            raise SystemExit(f"{name} is not there; run `make assets` or give --student/--teacher.")
    vocabs = Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher)
    projection = Projection.build(*vocabs)
    projection.save(folder / "w.safetensors")
    names = {"student": str(student), "teacher": str(teacher)}
    (folder / "pair.json").write_text(json.dumps(names))
    encodings = encode_texts(vocabs[0], [default_text()], bos=False)
    encodings += encode_texts(vocabs[1], [default_text()], bos=False)
    (s_ids, s_ends), (t_ids, t_ends) = ((e.ids, e.spans[:, 1]) for e in encodings)
    common = np.intersect1d(s_ends, t_ends)
    for length in lengths:
        if len(s_ids) < length:
            raise SystemExit(f"The text has only {len(s_ids)} student tokens, not {length}.")
        end = common[np.searchsorted(common, s_ends[length - 1], side="right") - 1]
        s, t = (int(np.searchsorted(ends, end, side="right")) for ends in (s_ends, t_ends))
        found = align(vocabs[0], vocabs[1], s_ids[:s], t_ids[:t])
        starts = np.stack([found.student_start, found.teacher_start], 1).astype(np.int64)
        stops = np.stack([found.student_stop, found.teacher_stop], 1).astype(np.int64)
        inside = (starts > 0).all(axis=1)
        starts, stops = starts[inside], stops[inside]
        counts = stops - starts
        table = np.stack([starts[:, 0] - 1, counts[:, 0], starts[:, 1] - 1, counts[:, 1]], 1)
        np.savez(
            folder / f"case-{length}.npz",
            student_ids=s_ids[:s],
            teacher_ids=t_ids[:t],
            student_ends=s_ends[:s],
            teacher_ends=t_ends[:t],
            chunk_table=table,
        )
        if logits:
            for side, ids, masked in (
                ("student", s_ids[:s], projection.student_masked),
                ("teacher", t_ids[:t], projection.teacher_masked),
            ):
                _write_logits(folder / f"{side}-logits-{length}", ids, masked)
    return {
        "student": Path(student).name,
        "teacher": Path(teacher).name,
        "student_vocabulary": projection.student_size,
        "teacher_vocabulary": projection.teacher_size,
        "exact_pairs": len(projection.exact_pairs()[0]),
    }


def _write_logits(path: Path, ids: np.ndarray, masked: np.ndarray) -> None:
    size = len(masked)
    masked_X = torch.from_numpy(np.flatnonzero(masked))

    def blocks() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(len(ids) + size)
        target = torch.from_numpy(np.append(ids[1:], 0))
        for rows in target.split(FILL_ROWS):
            block = torch.randn(len(rows), size, generator=generator) * SPREAD
            block[torch.arange(len(rows)), rows] += REALISED
            # The plain forms and the peer know no masks; this way all compute the same.
            block[:, masked_X] = NEVER
            yield block

    write_blocks(path, blocks())


def write_random(path: Path, rows: int, columns: int, scale: float, seed: int) -> None:
    """Write normal numbers [rows, columns] for `mapped`."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(1024, rows - start) for start in range(0, rows, 1024)]
    write_blocks(path, (torch.randn(n, columns, generator=generator) * scale for n in sizes))


def write_blocks(path: Path, blocks: Iterator[Tensor]) -> None:
    """Write float32 blocks one after the other."""
    with path.open("wb") as file:
        for block in blocks:
            file.write(block.numpy().tobytes())


def mapped(path: Path, shape: tuple[int, int], device: str) -> Tensor:
    """Return a file's float32 numbers, read into memory (bf16 on a GPU)."""
    count = path.stat().st_size // 4
    tensor = torch.from_file(str(path), shared=True, size=count).view(shape)
    if device != "cpu":
        return tensor.to(device, torch.bfloat16)
    tensor.sum()  # Touch every page: reading them is not the contender's work.
    return tensor


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, in memory where there is room."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize > 2**34
    return tempfile.TemporaryDirectory(prefix="xtoken-bench-", dir=shared if roomy else None)
