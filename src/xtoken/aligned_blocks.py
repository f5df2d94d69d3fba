"""An alignment as columns of tokens that can be read: what reports draw and runs keep."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import AlignmentError

if TYPE_CHECKING:
    from xtoken.align import Alignment
    from xtoken.vocab import Vocabulary

OUTSIDE = -1
KIND_NAMES = ("1:1", "1:N", "N:1", "M:N")
# Longer runs of one whitespace character are written as a count.
LONG_RUN = 8
_SHOWN = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□"}
_SKIN_TONES = range(0x1F3FB, 0x1F400)


@dataclass(frozen=True)
class Block:
    """What stands in one column: a chunk's tokens on both sides, or tokens of no chunk.

    `kind` is a ChunkKind's number, or -1 for tokens outside of all chunks.
    """

    kind: int
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    is_role: bool = False

    @property
    def label(self) -> str:
        """`1:3` for a chunk of one student and three teacher tokens, `–` outside of chunks."""
        return "–" if self.kind == OUTSIDE else f"{len(self.student)}:{len(self.teacher)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        kind = None if self.kind == OUTSIDE else KIND_NAMES[self.kind]
        return {
            "kind": kind,
            "role": self.is_role,
            "student": list(self.student),
            "teacher": list(self.teacher),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Block:
        """Read what `to_dict` wrote."""
        kind = KIND_NAMES.index(data["kind"]) if data.get("kind") in KIND_NAMES else OUTSIDE
        return cls(
            kind,
            tuple(str(token) for token in data.get("student", ())),
            tuple(str(token) for token in data.get("teacher", ())),
            bool(data.get("role", False)),
        )


def visible(data: bytes) -> str:
    """Write a token's bytes so that every one of them can be seen and none moves the cursor.

    Space `·`, line feed `⏎`, carriage return `␍`, tab `⇥`; bytes that are no UTF-8, and control,
    format and joining characters, as `<hex>`; a mark that would sit on its neighbour gets `◌`.
    """
    text = data.decode("utf-8", errors="surrogateescape")
    parts: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        run = 1
        while position + run < len(text) and text[position + run] == char:
            run += 1
        if char in _SHOWN and run > LONG_RUN:
            parts.append(f"{_SHOWN[char]}×{run}")
            position += run
            continue
        parts.append(_visible_char(char, first=position == 0))
        position += 1
    return "".join(parts)


def _visible_char(char: str, *, first: bool) -> str:
    if char in _SHOWN:
        return _SHOWN[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"<{code - 0xDC00:02X}>"
    category = unicodedata.category(char)
    # Joined emoji are as wide as the terminal likes; written apart, their width is known.
    joins = code in (0xFE0E, 0xFE0F) or (code in _SKIN_TONES and not first)
    if category in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs") or joins:
        return f"<{code:02X}>"
    return f"◌{char}" if first and category in ("Mn", "Me", "Mc") else char


def token_label(vocab: Vocabulary, token: int) -> str:
    """Return a token for people: its visible bytes, or a role token's own spelling."""
    data = vocab.token_bytes(token)
    if data:
        return visible(data)
    spelling = getattr(vocab, "token_text", None)
    return spelling(token) if spelling else f"<{vocab.role(token) or 'no bytes'}>"


def blocks(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    student_ids: Sequence[int] | np.ndarray,
    teacher_ids: Sequence[int] | np.ndarray,
    alignment: Alignment,
) -> list[Block]:
    """Return the columns of an aligned pair of encodings, in text order.

    Every token is in exactly one block. Raises AlignmentError where the ids are not those that
    were aligned (their number differs).
    """
    for side, ids, chunk in (
        ("student", student_ids, alignment.student_chunk),
        ("teacher", teacher_ids, alignment.teacher_chunk),
    ):
        if len(ids) != len(chunk):
            raise AlignmentError(
                f"{len(ids)} {side} ids were given, but the alignment is of {len(chunk)}; give the "
                f"ids that were aligned."
            )
    student = [token_label(student_vocab, int(token)) for token in student_ids]
    teacher = [token_label(teacher_vocab, int(token)) for token in teacher_ids]
    found: list[Block] = []
    at_student = at_teacher = 0

    def outside(student_stop: int, teacher_stop: int) -> None:
        nonlocal at_student, at_teacher
        found.extend(Block(OUTSIDE, (t,), ()) for t in student[at_student:student_stop])
        found.extend(Block(OUTSIDE, (), (t,)) for t in teacher[at_teacher:teacher_stop])
        at_student, at_teacher = student_stop, teacher_stop

    for c in range(len(alignment)):
        outside(int(alignment.student_start[c]), int(alignment.teacher_start[c]))
        student_stop, teacher_stop = int(alignment.student_stop[c]), int(alignment.teacher_stop[c])
        found.append(
            Block(
                int(alignment.kind[c]),
                tuple(student[at_student:student_stop]),
                tuple(teacher[at_teacher:teacher_stop]),
                bool(alignment.is_role[c]),
            )
        )
        at_student, at_teacher = student_stop, teacher_stop
    outside(len(student), len(teacher))
    return found
