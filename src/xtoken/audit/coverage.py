"""Counts: which byte strings both vocabularies have, class by class, and what losses make of it."""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xtoken.audit.classes import CRITICAL, OTHER_SCRIPTS, classify, sorted_keys, title
from xtoken.audit.model import ClassRow, Overlap, Tokenizer
from xtoken.projection.rules import token_bytes_list
from xtoken.projection.tokens import printable

if TYPE_CHECKING:
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary

EXAMPLES = 5
# Scripts with fewer ids than this on both sides, and next to no use on the text, share one row.
SMALL_SCRIPT = 100
USED_SCRIPT = 0.001
LOSSES = ("path_kl", "p_kl", "h_kl", "gold", "strict", "csd")


@dataclass(frozen=True)
class SideClasses:
    """One side's ids: class of each, whether it has an exact partner, use on the text."""

    vocab: Vocabulary
    class_of: np.ndarray
    keys: list[str]
    exact: np.ndarray
    text_counts: np.ndarray | None

    def sizes(self) -> dict[str, int]:
        """Return class key -> number of ids."""
        counts = np.bincount(self.class_of, minlength=len(self.keys))
        return {key: int(count) for key, count in zip(self.keys, counts, strict=True) if count}

    def members(self, key: str) -> np.ndarray:
        """bool[n]: ids of a class."""
        if key not in self.keys:
            return np.zeros(len(self.class_of), dtype=bool)
        return self.class_of == self.keys.index(key)

    def counts(self, key: str) -> tuple[int, int, int | None, int | None]:
        """Return (ids, exact ids, tokens on the text, exact tokens on the text) of a class."""
        members = self.members(key)
        ids, exact = int(members.sum()), int((members & self.exact).sum())
        if self.text_counts is None:
            return ids, exact, None, None
        used = self.text_counts[members]
        return ids, exact, int(used.sum()), int(used[self.exact[members]].sum())


def merge_small_scripts(
    student: SideClasses, teacher: SideClasses
) -> tuple[SideClasses, SideClasses]:
    """Put the letters of scripts that hardly occur into one class, `letters_other`."""
    sides = (student, teacher)
    keep = {key for side in sides for key, size in side.sizes().items() if size >= SMALL_SCRIPT}
    keep.add("letters_latin")
    for side in sides:
        if side.text_counts is not None:
            total = max(int(side.text_counts.sum()), 1)
            use = np.bincount(side.class_of, side.text_counts, minlength=len(side.keys)) / total
            keep |= {key for key, share in zip(side.keys, use, strict=True) if share >= USED_SCRIPT}
    keep.discard(OTHER_SCRIPTS)
    merged = []
    for side in sides:
        keys = [*side.keys, OTHER_SCRIPTS]
        small = [key.startswith("letters_") and key not in keep for key in side.keys]
        new = np.where([*small, False], len(side.keys), np.arange(len(keys)))
        merged.append(replace(side, class_of=new[side.class_of], keys=keys))
    return merged[0], merged[1]


def byte_strings(vocab: Vocabulary) -> set[bytes]:
    """Return the distinct byte strings of a vocabulary."""
    return set(token_bytes_list(vocab, np.flatnonzero(vocab.byte_lengths > 0)))


def measure_overlap(student: set[bytes], teacher: set[bytes]) -> Overlap:
    """Compare two sets of byte strings, empty ones included."""
    shared = len(student & teacher)
    return Overlap(
        shared=shared,
        student_share=shared / max(len(student), 1),
        teacher_share=shared / max(len(teacher), 1),
        smaller_share=shared / max(min(len(student), len(teacher)), 1),
    )


def describe(vocab: Vocabulary, distinct: int) -> Tokenizer:
    """Return the facts of one side."""
    return Tokenizer(
        name=vocab.name,
        size=len(vocab),
        rows=vocab.rows,
        padded_rows=None if vocab.rows is None else vocab.rows - len(vocab),
        missing_ids=int(vocab.is_missing.sum()),
        special_tokens=int(vocab.is_special.sum()),
        distinct_bytes=distinct,
        fingerprint=vocab.fingerprint,
        lossy=vocab.lossy,
        normalizes=vocab.normalizes,
        notes=tuple(vocab.notes),
        has_chat_template=bool(vocab.chat_template),
    )


def student_side(
    vocab: Vocabulary, projection: Projection, text_counts: np.ndarray | None
) -> SideClasses:
    """Classify the student's ids; exactness is W's own flag."""
    return SideClasses(vocab, *classify(vocab), projection.exact, text_counts)


def teacher_side(
    vocab: Vocabulary,
    projection: Projection,
    student_strings: set[bytes],
    text_counts: np.ndarray | None,
) -> SideClasses:
    """Classify the teacher's ids; exact are those whose bytes, or role, the student has too."""
    exact = np.zeros(len(vocab), dtype=bool)
    exact[projection.indices[projection.exact, 0]] = True
    # Of several ids with the same bytes W points at one; the others are matched as well.
    rest = np.flatnonzero(~exact & (vocab.byte_lengths > 0))
    exact[rest] = [data in student_strings for data in token_bytes_list(vocab, rest)]
    rest = np.flatnonzero(~exact & vocab.is_special & (projection.teacher_fold >= 0))
    exact[rest] = True
    return SideClasses(vocab, *classify(vocab), exact, text_counts)


def class_rows(student: SideClasses, teacher: SideClasses) -> tuple[ClassRow, ...]:
    """Return the table of token classes, in the order for people."""
    sizes = student.sizes()
    for key, count in teacher.sizes().items():
        sizes[key] = sizes.get(key, 0) + count
    rows = []
    for key in sorted_keys(sizes):
        student_ids, student_exact, student_text, student_text_exact = student.counts(key)
        teacher_ids, teacher_exact, teacher_text, teacher_text_exact = teacher.counts(key)
        rows.append(
            ClassRow(
                key=key,
                title=title(key),
                critical=key in CRITICAL,
                student_ids=student_ids,
                student_exact=student_exact,
                teacher_ids=teacher_ids,
                teacher_exact=teacher_exact,
                student_text_tokens=student_text,
                student_text_exact=student_text_exact,
                teacher_text_tokens=teacher_text,
                teacher_text_exact=teacher_text_exact,
                unmatched_examples=_examples(student, key),
                teacher_unmatched_examples=_examples(teacher, key),
                effects=effects(student_ids, student_exact, teacher_ids, teacher_exact, key),
            )
        )
    return tuple(rows)


def _examples(side: SideClasses, key: str) -> tuple[str, ...]:
    """Unmatched tokens of a class: the most used on the text, else the lowest ids."""
    unmatched = np.flatnonzero(side.members(key) & ~side.exact)
    if key in ("missing", "special"):
        return ()
    if side.text_counts is not None:
        order = np.lexsort((unmatched, -side.text_counts[unmatched]))
        unmatched = unmatched[order]
    return tuple(printable(side.vocab.token_bytes(int(token))) for token in unmatched[:EXAMPLES])


def effects(
    student_ids: int, student_exact: int, teacher_ids: int, teacher_exact: int, key: str
) -> dict[str, str]:
    """Say in a few words what each loss does with a class, from its matched shares."""
    if key == "missing":
        return dict.fromkeys(LOSSES, "in no distribution")
    if key == "special":
        return dict.fromkeys(LOSSES, "paired by role; tokens without a partner are left out")
    left_out = student_ids - student_exact, teacher_ids - teacher_exact
    if not any(left_out):
        return dict.fromkeys(LOSSES, "matched id for id")
    who = " and ".join(
        f"{count:,} of the {side}'s {ids:,}"
        for side, count, ids in (
            ("student", left_out[0], student_ids),
            ("teacher", left_out[1], teacher_ids),
        )
        if count
    )
    ranked = f"{who}: probability compared by rank only, whatever the token"
    if left_out[0]:
        ranked += "; the student's are pushed down wherever the teacher is sure of a common token"
    return {
        "path_kl": f"{who}: compared piece by piece along its spelling on the other side",
        "p_kl": (
            f"{who}: "
            + (
                "the student's mass goes to the teacher's pieces, mostly the first"
                if left_out[0]
                else "the teacher's mass is added to its first piece"
            )
        ),
        "h_kl": f"{ranked} (but for near matches, weight 0.6 or more)",
        "gold": ranked,
        "strict": f"{who}: only in the rest bucket; chunks that hold them are skipped",
        "csd": f"{who}: matched where its pieces spell the other side's token, else rest bucket",
    }


def other_digits(student: SideClasses) -> dict[str, bool]:
    """Return the student's single digits of other scripts: digit -> the teacher has it too."""
    found = {}
    for token in np.flatnonzero(student.members("digit_other")).tolist():
        found[student.vocab.token_bytes(token).decode().strip()] = bool(student.exact[token])
    return dict(sorted(found.items()))


# The digits and marks that byte-level BPE's printable alphabet has above ASCII: the bytes 0xB2,
# 0xB3, 0xB9 are printed as superscript digits, 0xA1 and others as Latin-1 punctuation.
_SHOWN_DIGITS = frozenset(b"0123456789\xb2\xb3\xb9")
_SHOWN_MARKS = frozenset(string.punctuation.encode()) | {
    byte for byte in range(0xA1, 0x100) if unicodedata.category(chr(byte))[0] in "PS"
} - {0xAD}


def table_8_counts(student: set[bytes], teacher: set[bytes]) -> dict[str, tuple[int, int]]:
    """Count as X-Token's table 8 does: class -> (student tokens, those that the teacher has).

    The paper compares byte-level BPE's printed strings, in which the lone bytes 0xB2, 0xB3 and
    0xB9 look like the digits `²`, `³`, `¹` (hence 13 single digits, not 10), and the lone bytes
    of Latin-1 marks like punctuation (hence 88 marks: 32 of ASCII, with and without a space, and
    24 more). Only meant for pairs of byte-level BPE tokenizers; the audit's own classes go by
    what the bytes are.
    """
    classes: dict[str, list[bytes]] = {
        "1-digit": [],
        "2-digit": [],
        "3-digit": [],
        "ASCII punct": [],
    }
    for token in student:
        if len(token) <= 3 and all(byte in _SHOWN_DIGITS for byte in token):
            classes[f"{len(token)}-digit"].append(token)
        body = token[1:] if token[:1] == b" " else token
        if len(body) == 1 and body[0] in _SHOWN_MARKS:
            classes["ASCII punct"].append(token)
    return {
        key: (len(tokens), sum(token in teacher for token in tokens))
        for key, tokens in classes.items()
    }
