"""Records as pairs: one content, encoded by the student and by every teacher, and aligned.

Long documents are cut into windows of student tokens; every window's text is encoded by both
sides. Prompts with completions and chats are never cut up, only truncated. What is supervised is a
range of content bytes, so both sides mask the same text whatever stands around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeVar

from xtoken._contents import read_messages
from xtoken.align import Alignment, align_batch
from xtoken.data.records import Record
from xtoken.data.windows import segments, windows
from xtoken.encode import Encoding, encode_chat, encode_prompt_completion, encode_texts
from xtoken.errors import DataError, UsageError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

Supervise = Literal["assistant", "all"]
Item = TypeVar("Item")

# Characters of text that are encoded and aligned together.
BATCH_CHARACTERS = 1 << 18
BATCH_RECORDS = 256
# A window may come out this much longer than planned when it is tokenised on its own.
SPARE_TOKENS = 2


@dataclass(frozen=True)
class TeacherSide:
    """A teacher's encoding of a content and its alignment with the student's.

    `alignment` is None where the teacher's tokens are the student's own, one for one.
    """

    encoding: Encoding
    alignment: Alignment | None
    truncated: bool = False


@dataclass(frozen=True)
class PairedExample:
    """One window of a document, prompt with completion, or chat, as every model reads it.

    `closed`: it ends where its document ends, so that another may follow in the same row.
    """

    where: str
    student: Encoding
    teachers: tuple[TeacherSide, ...]
    closed: bool


@dataclass(frozen=True)
class PairingSettings:
    """How records are cut and masked; lengths are in tokens of each side.

    `max_length`: longest student sequence; `teacher_max_length`: longest teacher sequence, beyond
    which the tail is dropped (None: whatever the student's text needs); `supervise`: which
    messages of a chat are targets.
    """

    max_length: int = 1024
    teacher_max_length: int | None = None
    supervise: Supervise = "assistant"

    def __post_init__(self) -> None:
        for name, length in (
            ("max_length", self.max_length),
            ("teacher_max_length", self.teacher_max_length),
        ):
            if length is not None and length < 2:
                raise UsageError(f"{name} is {length}; expected at least 2 tokens")


class Pairing:
    """Turns records into paired examples for one student and its teachers."""

    def __init__(
        self,
        student: Vocabulary,
        teachers: Sequence[Vocabulary],
        settings: PairingSettings | None = None,
    ) -> None:
        self.student = student
        self.teachers = list(teachers)
        self.settings = settings or PairingSettings()
        self.same = [student.same_as(teacher) for teacher in self.teachers]

    def pair(self, records: Iterable[Record]) -> Iterator[PairedExample]:
        """Yield the examples in the order of the records; contents without a token give none.

        Raises:
            DataError: a chat that a template refuses, with its file and line.
            VocabularyError: chats for a tokenizer without a chat template.
        """
        for kind, group in groupby(records, key=lambda record: record.kind):
            if kind == "text":
                for pieces in _batches(_pieces(group), lambda piece: len(piece.text)):
                    yield from self._texts(pieces)
            else:
                encode = self._chat if kind == "messages" else self._prompt_completion
                for batch in _batches(group, _length):
                    yield from self._encoded(batch, encode)

    # ---- Documents -----------------------------------------------------------------------

    def _texts(self, pieces: Sequence[_Piece]) -> Iterator[PairedExample]:
        fitted = [item for own in self._fit(pieces) for item in own]
        parts = [piece for piece, _ in fitted]
        yield from self._join(
            [piece.where for piece in parts],
            [encoding for _, encoding in fitted],
            [
                None if same else _encode_pieces(teacher, parts)
                for teacher, same in zip(self.teachers, self.same, strict=True)
            ],
            [piece.ends for piece in parts],
        )

    def _fit(self, pieces: Sequence[_Piece]) -> list[list[tuple[_Piece, Encoding]]]:
        """Encode pieces for the student; those that are too long in windows that are not."""
        longest = self.settings.max_length
        encodings = _encode_pieces(self.student, pieces)
        parts: list[list[_Piece]] = []
        for piece, encoding in zip(pieces, encodings, strict=True):
            texts = [piece.text]
            if len(encoding) > longest:
                roles = int((encoding.spans[:, 0] >= encoding.spans[:, 1]).sum())
                budget = max(longest - roles - SPARE_TOKENS, 1)
                texts = windows(piece.text, encoding.spans, budget)
            last = len(texts) - 1
            parts.append(
                [
                    _Piece(text, piece.where, piece.ends and i == last)
                    for i, text in enumerate(texts)
                ]
            )
        cut = [part for own in parts if len(own) > 1 for part in own]
        again = iter(self._fit(cut) if cut else [])
        return [
            [(own[0], encoding)] if len(own) == 1 else [item for _ in own for item in next(again)]
            for own, encoding in zip(parts, encodings, strict=True)
        ]

    # ---- Prompts with completions, and chats ---------------------------------------------

    def _encoded(
        self, records: Sequence[Record], encode: Callable[[Vocabulary, Record], Encoding]
    ) -> Iterator[PairedExample]:
        student = [_located(encode, self.student, record) for record in records]
        kept = [index for index, encoding in enumerate(student) if encoding.content_bytes]
        teachers: list[list[Encoding] | None] = [
            None
            if same and self._reads_alike(teacher, records[0])
            else [_located(encode, teacher, records[index]) for index in kept]
            for teacher, same in zip(self.teachers, self.same, strict=True)
        ]
        yield from self._join(
            [records[index].where for index in kept],
            [student[index] for index in kept],
            teachers,
            [True] * len(kept),
        )

    def _reads_alike(self, teacher: Vocabulary, record: Record) -> bool:
        return record.kind != "messages" or teacher.chat_template == self.student.chat_template

    def _prompt_completion(self, vocab: Vocabulary, record: Record) -> Encoding:
        eos = vocab.role_id("eos") is not None
        return encode_prompt_completion(vocab, record.prompt, record.completion, eos=eos)

    def _chat(self, vocab: Vocabulary, record: Record) -> Encoding:
        encoding = encode_chat(vocab, record.messages, supervise=self.settings.supervise)
        if record.completion_messages is None:
            return encoding
        # Of a prompt given as messages nothing is supervised. The end of its last turn stands
        # where the completion's content begins.
        completion = read_messages(record.messages)[-record.completion_messages :]
        begin = encoding.content_bytes - sum(len(m["content"].encode()) for m in completion)
        return replace(encoding, supervised=encoding.supervised & (encoding.spans[:, 1] > begin))

    # ---- Both sides ----------------------------------------------------------------------

    def _join(
        self,
        where: Sequence[str],
        student: Sequence[Encoding],
        teachers: Sequence[Sequence[Encoding] | None],
        ends: Sequence[bool],
    ) -> Iterator[PairedExample]:
        """Truncate and align; a teacher without encodings of its own reads the student's."""
        shown = [encoding.truncate(self.settings.max_length) for encoding in student]
        sides = [
            self._side(vocab, shown, own)
            for vocab, own in zip(self.teachers, teachers, strict=True)
        ]
        for index, encoding in enumerate(shown):
            if not len(encoding):
                continue
            own_sides = tuple(side[index] for side in sides)
            closed = (
                ends[index]
                and len(encoding) == len(student[index])
                and not any(side.truncated for side in own_sides)
            )
            yield PairedExample(where[index], encoding, own_sides, closed)

    def _side(
        self, vocab: Vocabulary, student: Sequence[Encoding], own: Sequence[Encoding] | None
    ) -> list[TeacherSide]:
        whole = student if own is None else own
        limit = self.settings.teacher_max_length
        read = [encoding if limit is None else encoding.truncate(limit) for encoding in whole]
        alignments: Sequence[Alignment | None] = [None] * len(read)
        if own is not None:
            alignments = align_batch(
                self.student,
                vocab,
                [encoding.ids for encoding in student],
                [encoding.ids for encoding in read],
                student_spans=[encoding.spans for encoding in student],
                teacher_spans=[encoding.spans for encoding in read],
            )
        return [
            TeacherSide(short, alignment, truncated=len(short) < len(full))
            for short, full, alignment in zip(read, whole, alignments, strict=True)
        ]


@dataclass(frozen=True)
class _Piece:
    """Part of a document; `ends`: its last part."""

    text: str
    where: str
    ends: bool


def _pieces(records: Iterable[Record]) -> Iterator[_Piece]:
    for record in records:
        parts = segments(record.text)
        for index, part in enumerate(parts):
            yield _Piece(part, record.where, index + 1 == len(parts))


def _encode_pieces(vocab: Vocabulary, pieces: Sequence[_Piece]) -> list[Encoding]:
    """Encode parts of documents; those that end their document get an eos, where there is one."""
    has_eos = vocab.role_id("eos") is not None
    encodings: dict[int, Encoding] = {}
    for eos in (False, True):
        chosen = [index for index, piece in enumerate(pieces) if (piece.ends and has_eos) == eos]
        if not chosen:
            continue  # also: a tokenizer without eos is never asked for one
        found = encode_texts(vocab, [pieces[index].text for index in chosen], eos=eos)
        encodings.update(zip(chosen, found, strict=True))
    return [encodings[index] for index in range(len(pieces))]


def _located(
    encode: Callable[[Vocabulary, Record], Encoding], vocab: Vocabulary, record: Record
) -> Encoding:
    try:
        return encode(vocab, record)
    except DataError as error:
        raise DataError(f"{record.where}: {error}") from error


def _length(record: Record) -> int:
    contents = [str(message.get("content") or "") for message in record.messages]
    return len(record.prompt) + len(record.completion) + sum(map(len, contents))


def _batches(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items up to a number of characters."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += length(item)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_RECORDS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
