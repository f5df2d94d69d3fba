"""From sources to a data set, in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from xtoken.data.dataset import PairedDataset
from xtoken.data.pairing import PairedExample, Pairing, PairingSettings, Supervise
from xtoken.data.records import Record
from xtoken.data.rows import Row, make_row, pack
from xtoken.errors import DataError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# (share of the sources read, None where unknown; rows made so far)
Progress = Callable[[float | None, int], None]


def build_dataset(
    records: Iterable[Record],
    student: Vocabulary,
    teachers: Sequence[Vocabulary],
    *,
    max_length: int = 1024,
    teacher_max_length: int | None = None,
    packing: bool = False,
    supervise: Supervise = "assistant",
    max_examples: int | None = None,
    progress: Progress | None = None,
) -> PairedDataset:
    """Encode, align and pack records for a student and its teachers.

    Records without a target (an empty text, a prompt that fills `max_length`) are left out.

    Args:
        records: as `read_records` gives them.
        student, teachers: the vocabularies.
        max_length: longest student sequence, in tokens; longer documents are cut into windows,
            longer chats and completions truncated.
        teacher_max_length: longest sequence of each teacher; its tail is dropped.
        packing: put several whole short documents into one sequence.
        supervise: which messages of a chat are targets.
        max_examples: stop after this many sequences.
        progress: called after every sequence with the share of the sources that has been read
            (None where unknown) and the number of sequences.

    Raises:
        DataError: what is wrong in a source, with its file and line; or nothing in all the data
            that a loss could read, with the reason.
        VocabularyError: chats for a tokenizer without a chat template.
        UsageError: a length below 2.
    """
    settings = PairingSettings(max_length, teacher_max_length, supervise)
    source = _Counted(records)
    examples = _Watched(Pairing(student, teachers, settings).pair(source))
    packed = pack(
        examples, max_length=max_length, teacher_max_length=teacher_max_length, packing=packing
    )

    def told(rows: Iterable[Row]) -> Iterator[Row]:
        for count, row in enumerate(rows, start=1):
            yield row
            if progress is not None:
                progress(getattr(records, "fraction", None), count)

    rows = (row for row in map(make_row, packed) if row.supervised.any())
    dataset = PairedDataset(told(islice(rows, max_examples)))
    dataset.preview = examples.first
    if not len(dataset):
        raise DataError(f"Nothing in the data can be trained on: {_nothing(source, examples.seen)}")
    _refuse_without_support(dataset, [teacher.name for teacher in teachers], settings)
    return dataset


class _Counted:
    """Records, counted by kind as they go by."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = records
        self.count = 0
        self.has_chats = False
        self.has_answers = False

    def __iter__(self) -> Iterator[Record]:
        for record in self.records:
            self.count += 1
            if record.kind == "messages":
                self.has_chats = True
                self.has_answers |= any(m.get("role") == "assistant" for m in record.messages)
            yield record


class _Watched:
    """Those of the examples that have a target; the first is kept to be shown."""

    def __init__(self, examples: Iterable[PairedExample]) -> None:
        self.examples = examples
        self.first: PairedExample | None = None
        self.seen = 0

    def __iter__(self) -> Iterator[PairedExample]:
        for example in self.examples:
            self.seen += 1
            if example.student.supervised.any():
                self.first = self.first or example
                yield example


def _refuse_without_support(
    dataset: PairedDataset, names: Sequence[str], settings: PairingSettings
) -> None:
    """Raise DataError if there is a teacher for whom no chunk is supervised in all the data."""
    totals = dataset.statistics()
    for name, teacher in zip(names, totals.teachers, strict=True):
        if teacher.chunks:
            continue
        if not teacher.aligned_bytes:
            reason = "its tokens and the student's nowhere cover the same bytes of text"
        elif settings.teacher_max_length is not None:
            reason = (
                "its sequences end before the supervised text "
                f"(teacher_max_length is {settings.teacher_max_length}; raise it)"
            )
        else:
            reason = "no chunk lies in the supervised text with a token before it on both sides"
        raise DataError(
            f"No chunk is supervised for teacher {name} in {totals.rows} sequences: {reason}. "
            "`xtoken align` shows how the two tokenizers cut a text"
        )


def _nothing(source: _Counted, examples: int) -> str:
    if not source.count:
        return "there are no records; check the sources"
    if not examples:
        return f"all {source.count} records are empty"
    if source.has_chats and not source.has_answers:
        return (
            f"none of the {source.count} chats has a message with the role assistant; name the "
            "roles so, or set data.supervise: all"
        )
    if source.has_chats:
        return (
            "no assistant's message is left after cutting to max_length; raise data.max_length, "
            "or shorten the prompts"
        )
    return (
        "no completion is left after cutting to max_length, or every text is a single token; "
        "raise data.max_length, or give longer texts"
    )
