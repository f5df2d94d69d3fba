"""A run looked at before it starts: settings, memory, and the first example as models see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtoken.align import Alignment, ChunkKind
from xtoken.config import RunConfig
from xtoken.data import PairedDataset, PairedExample, TeacherSide
from xtoken.encode import Encoding
from xtoken.training.arguments import describe_arguments, training_arguments
from xtoken.training.assembly import taught_by
from xtoken.training.datasets import RunData, read_data
from xtoken.training.memory import GIB, MemoryEstimate, estimate, model_size
from xtoken.training.pairs import Pair, Pairs, make_pairs
from xtoken.training.student import require_peft, student_dtype
from xtoken.vocab import Vocabulary

# Sequences that are read and aligned, and chunks of the first that are shown.
EXAMPLES = 64
SHOWN_CHUNKS = 24


@dataclass(frozen=True)
class ChunkLine:
    """One chunk of the example: its tokens on both sides, as text, and what it is."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    kind: str
    supervised: bool


@dataclass(frozen=True)
class DryRun:
    """What `xtoken train --dry-run` shows; no weight was read.

    `example` and `pairs` are there for drawing the alignment in other ways than `lines`.
    """

    config: RunConfig
    arguments: dict[str, Any]
    memory: MemoryEstimate
    statistics: list[dict[str, Any]]
    example: PairedExample
    pairs: Pairs
    batch_shapes: dict[str, list[int]]
    notes: tuple[str, ...]

    def chunks(self, teacher: int = 0, limit: int | None = SHOWN_CHUNKS) -> list[ChunkLine]:
        """Return the example's chunks with one teacher, at most `limit`."""
        return chunk_lines(
            self.pairs.student,
            self.pairs.teachers[teacher],
            self.example.student,
            self.example.teachers[teacher],
        )[:limit]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "run": self.config.to_dict(),
            "arguments": self.arguments,
            "memory_gib": {
                **{name: size / GIB for name, size in self.memory.parts.items()},
                "total": self.memory.total / GIB,
            },
            "losses": {pair.name: pair.loss.kind for pair in self.pairs.teachers},
            "alignment": self.statistics,
            "batch_shapes": self.batch_shapes,
            "example": {
                "where": self.example.where,
                "chunks": {
                    pair.name: [
                        {
                            "student": list(line.student),
                            "teacher": list(line.teacher),
                            "kind": line.kind,
                            "supervised": line.supervised,
                        }
                        for line in self.chunks(index)
                    ]
                    for index, pair in enumerate(self.pairs.teachers)
                },
            },
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return everything but the resolved run as plain lines."""
        found = ["Memory for one process, roughly:", *(f"  {x}" for x in self.memory.lines())]
        found += ["", "A step:"]
        found += [f"  {name} {value}" for name, value in self.arguments.items()]
        found += [f"  {name} {shape}" for name, shape in self.batch_shapes.items()]
        for index, (pair, entry) in enumerate(
            zip(self.pairs.teachers, self.statistics, strict=True)
        ):
            found += [
                "",
                f"Teacher {pair.name}, loss {pair.loss.kind}, the first {entry['documents']} "
                "sequences:",
                f"  {entry['supervised_chunks']:,} supervised chunks, "
                f"{entry['one_to_one_share']:.1%} of them 1:1; {entry['byte_coverage']:.1%} of "
                "the bytes aligned",
                f"  the first example ({self.example.where}), student | teacher, * supervised:",
            ]
            found += [_line(chunk) for chunk in self.chunks(index)]
        return [*found, *(f"Note: {note}" for note in self.notes)]


def dry_run(config: RunConfig) -> DryRun:
    """Check a run without reading any weights or writing anything.

    Tokenizers are read, W and the losses are made, and the first sequences are encoded, aligned
    and collated, so most mistakes in a run file show here.

    Raises:
        The errors of `train`, up to the loading of models.
    """
    notes: list[str] = []
    if config.student.lora is not None:
        require_peft()
    args = training_arguments(config)
    pairs = make_pairs(config, Path(config.output_dir), say=notes.append)
    data = read_data(_short(config), pairs, progress="none", say=notes.append)
    sizes = [model_size(teacher) for teacher in taught_by(config)]
    memory = estimate(
        config,
        args,
        model_size(config.student),
        sizes,
        student_dtype=student_dtype(config.student),
        teacher_lengths=_teacher_lengths(config, data, pairs)[: len(sizes)],
    )
    example = data.train.preview
    assert example is not None  # data without a target is refused
    return DryRun(
        config=config,
        arguments=describe_arguments(args),
        memory=memory,
        statistics=data.statistics,
        example=example,
        pairs=pairs,
        batch_shapes=_shapes(data, pairs, args.per_device_train_batch_size),
        notes=tuple(notes),
    )


def _short(config: RunConfig) -> RunConfig:
    """Return the run with the first sequences of its training data only."""
    given = config.data.max_examples
    update = {
        "max_examples": EXAMPLES if given is None else min(given, EXAMPLES),
        "eval": None,
        "eval_split": None,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def _teacher_lengths(config: RunConfig, data: RunData, pairs: Pairs) -> list[int]:
    """Guess each teacher's longest sequence: the student's, stretched by the tokenizers' ratio."""
    longest = [max(side) for side in _lengths(data.train)]
    lengths = []
    for index, pair in enumerate(pairs.teachers):
        ratio = longest[1 + index] / longest[0]
        length = round(config.data.max_length * ratio)
        lengths += [min(length, config.data.teacher_max_length or length)] * len(pair.members)
    return lengths


def _lengths(dataset: PairedDataset) -> list[list[int]]:
    rows = list(dataset)
    sides = [[len(row.ids) for row in rows]]
    for index in range(dataset.teachers):
        sides.append([len(row.teachers[index].ids) for row in rows])
    return sides


def _shapes(data: RunData, pairs: Pairs, size: int) -> dict[str, list[int]]:
    batch = data.collator([data.train[index] for index in range(min(size, len(data.train)))])
    shapes = {"student tokens": list(batch["input_ids"].shape)}
    for pair, part in zip(pairs.teachers, batch["teachers"], strict=True):
        shapes[f"tokens of {pair.name}"] = list(part["input_ids"].shape)
        shapes[f"chunks with {pair.name}"] = [int(part["chunks"].shape[0])]
    return shapes


def chunk_lines(
    student: Vocabulary, pair: Pair, own: Encoding, side: TeacherSide
) -> list[ChunkLine]:
    """Return every chunk of an example with its tokens; without an alignment, token by token."""
    alignment = side.alignment
    if alignment is None:
        return [
            ChunkLine(
                (_text(student, token),), (_text(pair.vocab, token),), "ONE_TO_ONE", bool(marked)
            )
            for token, marked in zip(own.ids.tolist(), own.supervised.tolist(), strict=True)
        ]
    supervised = alignment.supervised(own.supervised, side.encoding.supervised)
    return [
        ChunkLine(
            _tokens(student, own, alignment, "student", index),
            _tokens(pair.vocab, side.encoding, alignment, "teacher", index),
            ChunkKind(int(alignment.kind[index])).name,
            bool(supervised[index]),
        )
        for index in range(len(alignment))
    ]


def _tokens(
    vocab: Vocabulary, encoding: Encoding, alignment: Alignment, side: str, chunk: int
) -> tuple[str, ...]:
    start = int(getattr(alignment, f"{side}_start")[chunk])
    stop = int(getattr(alignment, f"{side}_stop")[chunk])
    return tuple(_text(vocab, int(token)) for token in encoding.ids[start:stop])


def _text(vocab: Vocabulary, token: int) -> str:
    """Return a token's text for showing: bytes as text, whitespace and controls escaped."""
    role = vocab.role(token)
    if role is not None:
        return f"<{role}>"
    text = vocab.token_bytes(token).decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line(chunk: ChunkLine) -> str:
    student = "·".join(chunk.student)
    teacher = "·".join(chunk.teacher)
    mark = "*" if chunk.supervised else " "
    kind = chunk.kind.lower().replace("_to_", ":").replace("one", "1").replace("many", "n")
    return f"  {mark} {kind:<4} {student!s:<24} | {teacher}"
