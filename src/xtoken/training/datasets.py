"""The data of a run file: read, encoded and aligned for every model, with what is known of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from xtoken.config import RunConfig, Source
from xtoken.data import (
    Columns,
    PairCollator,
    PairedDataset,
    Record,
    Records,
    SourceSpec,
    build_dataset,
    read_records,
)
from xtoken.training.callbacks import NARROW
from xtoken.training.metrics import KINDS
from xtoken.training.pairs import Pairs, Say

# Text that the audit looks at; enough for every class of tokens that the text uses much.
SAMPLE_CHARACTERS = 1 << 20
# Below this share of aligned bytes something is likely wrong with the pair or the text.
LOW_COVERAGE = 0.9


@dataclass(frozen=True)
class RunData:
    """Training and evaluation data, the collator, and statistics for alignment.json.

    `sample` holds texts from the start of the training data.
    """

    train: PairedDataset
    evaluation: PairedDataset | None
    collator: PairCollator
    statistics: list[dict[str, Any]]
    sample: list[str]


def read_data(config: RunConfig, pairs: Pairs, *, progress: str, say: Say) -> RunData:
    """Read, encode and align the run's data.

    Raises:
        DataError: unreadable or empty data, or data in which nothing is supervised.
        VocabularyError: chats for a tokenizer without a chat template.
    """
    data = config.data
    train = _build(config, pairs, data.train, "training data", data.max_examples, progress)
    evaluation = None
    if data.eval is not None:
        evaluation = _build(config, pairs, data.eval, "evaluation data", None, progress)
    elif data.eval_split is not None:
        train, evaluation = train.split(data.eval_split, seed=config.seed)
    vocabularies = [pair.vocab for pair in pairs.teachers]
    statistics = alignment_statistics(train, pairs)
    for entry in statistics:
        if entry["byte_coverage"] < LOW_COVERAGE:
            say(
                f"Only {entry['byte_coverage']:.0%} of the text's bytes are aligned with teacher "
                f"{entry['teacher']}: look at a text with `xtoken align`, and at "
                "data.teacher_max_length."
            )
    return RunData(
        train=train,
        evaluation=evaluation,
        collator=PairCollator.of(
            pairs.student, vocabularies, multiple_of=8 if torch.cuda.is_available() else 1
        ),
        statistics=statistics,
        sample=list(_texts(_records(config, data.train))),
    )


def _records(config: RunConfig, sources: list[Source]) -> Records:
    data = config.data
    return read_records(
        [SourceSpec(source.path, source.name, source.split) for source in sources],
        format=data.format,
        columns=Columns(
            data.text_column, data.prompt_column, data.completion_column, data.messages_column
        ),
        encoding=data.encoding,
    )


def _build(
    config: RunConfig,
    pairs: Pairs,
    sources: list[Source],
    what: str,
    max_examples: int | None,
    progress: str,
) -> PairedDataset:
    data = config.data
    with _shown(f"Preparing {what}", progress) as told:
        return build_dataset(
            _records(config, sources),
            pairs.student,
            [pair.vocab for pair in pairs.teachers],
            max_length=data.max_length,
            teacher_max_length=data.teacher_max_length,
            packing=data.packing,
            supervise=data.supervise,
            max_examples=max_examples,
            progress=told,
        )


def alignment_statistics(dataset: PairedDataset, pairs: Pairs) -> list[dict[str, Any]]:
    """Return one dict a teacher: lengths, coverage and kinds of chunks (for alignment.json)."""
    totals = dataset.statistics()
    entries = []
    size = max(totals.text_bytes, 1)
    for pair, side in zip(pairs.teachers, totals.teachers, strict=True):
        chunks = {kind: getattr(side, kind) for kind in KINDS}
        entries.append(
            {
                "teacher": pair.name,
                "same_tokenizer": pair.same_tokenizer,
                "documents": totals.rows,
                "student_tokens": totals.tokens,
                "supervised_tokens": totals.supervised_tokens,
                "teacher_tokens": side.tokens,
                "text_bytes": totals.text_bytes,
                "student_tokens_per_byte": totals.tokens / size,
                "teacher_tokens_per_byte": side.tokens / max(side.text_bytes, 1),
                "byte_coverage": side.aligned_bytes / size,
                "one_to_one_share": side.one_to_one / max(side.chunks, 1),
                "supervised_chunks": side.chunks,
                "chunks": chunks,
            }
        )
    return entries


def _texts(records: Iterable[Record]) -> Iterator[str]:
    """Yield contents up to `SAMPLE_CHARACTERS` altogether."""
    left = SAMPLE_CHARACTERS
    for record in records:
        contents = [str(message.get("content") or "") for message in record.messages]
        text = "\n".join(
            part for part in (record.text, record.prompt, record.completion, *contents) if part
        )[:left]
        if text:
            yield text
        left -= len(text)
        if left <= 0:
            return


@contextmanager
def _shown(title: str, progress: str) -> Iterator[Callable[[float | None, int], None] | None]:
    """Show how far the data has been prepared: a bar on a terminal, one line at the end else."""
    if progress == "none":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    rows = 0
    started = time.time()
    if progress == "lines" or (progress == "auto" and not console.is_terminal):

        def count(share: float | None, done: int) -> None:
            nonlocal rows
            rows = done

        yield count
        spent = time.time() - started
        print(f"{title}: {rows:,} sequences in {spent:.1f} s", file=sys.stderr, flush=True)
        return
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} sequences"),
        TimeElapsedColumn(),
    )
    if console.width < NARROW:
        columns = (TextColumn("{task.percentage:>3.0f}% {task.description}"),)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, rows=0)

        def advance(share: float | None, done: int) -> None:
            # Every row would cost more than making it.
            if done % 64 == 0 or share == 1.0:
                bar.update(task, completed=share or 0.0, rows=done)

        yield advance
        bar.update(task, completed=1.0)
