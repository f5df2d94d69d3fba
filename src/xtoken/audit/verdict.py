"""Which loss to take for a pair, and what else its user should know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xtoken.audit.model import (
    AuditWarning,
    ClassRow,
    MarkRow,
    Overlap,
    RoleRow,
    Side,
    TextStatistics,
    Tokenizer,
    Verdict,
)

# A critical class is inside the common set when at least this share of its tokens has partners.
INSIDE = 0.9
# Any other class counts as critical when it makes up this share of the text's tokens and fewer
# than half of these have partners.
USED = 0.02
MOSTLY = 0.5
# Below this overlap the common set itself is the problem.
SMALL_OVERLAP = 0.5


def decide(same: bool, rows: Sequence[ClassRow], overlap: Overlap) -> Verdict:
    """Choose direct KL or Path-KL, and of X-Token's two losses P-KL or H-KL.

    Direct where the tokenizers are the same, else Path-KL, which has no split to be sound or not.
    X-Token's rule (coverage of task-critical classes): P-KL where a critical class (1- to 3-digit
    numerals, ASCII punctuation; on a text also any class that is used a lot) has tokens on either
    side without exact partner, since a strict partition suppresses them; H-KL otherwise.
    """
    if same:
        return Verdict(
            "direct",
            None,
            None,
            None,
            "Both models have the same tokenizer: every position and every id is compared "
            "directly, without projection or alignment.",
        )
    outside = list(_outside(rows))
    if outside:
        row, side, lost, total, on_text = max(outside, key=lambda item: item[2])
        what = "tokens of this text" if on_text else "tokens"
        consequence = "suppress them" if side == "student" else "lose what the teacher puts there"
        shown = row.unmatched_examples if side == "student" else row.teacher_unmatched_examples
        examples = ", ".join(f"`{example}`" for example in shown[:3])
        given = f" (such as {examples})" if examples else ""
        return Verdict(
            "path_kl",
            "p_kl",
            row.key,
            side,
            f"{_sentence(row.title)}: {lost:,} of the {side}'s {total:,} {what}{given} have no "
            "exact partner, and a split into common and uncommon tokens (GOLD, H-KL) would "
            f"{consequence}. Path-KL has no split; X-Token itself would take P-KL.",
        )
    if overlap.smaller_share < SMALL_OVERLAP:
        return Verdict(
            "path_kl",
            "p_kl",
            None,
            None,
            f"Only {overlap.smaller_share:.0%} of the smaller vocabulary is in the other, too few "
            "common tokens for a split (GOLD, H-KL). Path-KL needs none; X-Token itself would take "
            "P-KL.",
        )
    present = [row.title for row in rows if row.critical and row.student_ids]
    return Verdict(
        "path_kl",
        "h_kl",
        None,
        None,
        f"Every critical class of tokens ({'; '.join(present)}) has exact partners, so a split "
        "into common and uncommon tokens is sound, and X-Token itself would take H-KL. Path-KL "
        "needs no split.",
    )


def _outside(rows: Iterable[ClassRow]) -> Iterator[tuple[ClassRow, Side, int, int, bool]]:
    """Yield (row, side, unmatched, all, counted on the text) for each class outside."""
    rows = list(rows)
    totals = {
        "student": sum(row.student_text_tokens or 0 for row in rows),
        "teacher": sum(row.teacher_text_tokens or 0 for row in rows),
    }
    for row in rows:
        sides: tuple[tuple[Side, int, int, int | None, int | None], ...] = (
            (
                "student",
                row.student_ids,
                row.student_exact,
                row.student_text_tokens,
                row.student_text_exact,
            ),
            (
                "teacher",
                row.teacher_ids,
                row.teacher_exact,
                row.teacher_text_tokens,
                row.teacher_text_exact,
            ),
        )
        for side, ids, exact, used, used_exact in sides:
            if row.critical and ids and exact < INSIDE * ids:
                yield row, side, ids - exact, ids, False
            elif (
                used
                and used_exact is not None
                and row.key not in ("special", "missing")
                and used >= USED * totals[side]
                and used_exact < MOSTLY * used
            ):
                yield row, side, used - used_exact, used, True


def critical_outside(rows: Iterable[ClassRow]) -> list[ClassRow]:
    """Return the critical classes with too few exact partners on a side, in the table's order."""
    found = {row.key: row for row, *_, on_text in _outside(rows) if not on_text}
    return list(found.values())


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def warn(
    student: Tokenizer,
    teacher: Tokenizer,
    *,
    same: bool,
    overlap: Overlap,
    coverage: dict[str, Any],
    roles: Sequence[RoleRow],
    marks: Sequence[MarkRow],
    text: TextStatistics | None,
) -> tuple[AuditWarning, ...]:
    """Collect what a user would regret not having seen, most serious first."""
    found: list[AuditWarning] = []

    def add(code: str, message: str) -> None:
        found.append(AuditWarning(code, message))

    if not overlap.shared:
        add("no_common_tokens", "No token has a partner with the same bytes: GOLD and H-KL refuse.")
    if coverage["empty"]:
        add(
            "unreachable_tokens",
            f"{coverage['empty']:,} student tokens can't be written with the teacher's tokens; "
            "probability that the student gives them is lost in the projection.",
        )
    by_role = {row.role: row for row in roles}
    endings = [by_role[role] for role in ("eos", "end_of_turn") if role in by_role]
    if not same and not any(row.paired for row in endings):
        add(
            "no_common_ending",
            "The ends of texts have no partner on the other side (no eos or end-of-turn pair): "
            "the teacher can't teach when to stop.",
        )
    for side, other in ((student, teacher), (teacher, student)):
        which = "student" if side is student else "teacher"
        if side.lossy:
            add(
                f"lossy_{which}",
                f"The {which}'s tokenizer ({side.name}) loses parts of a text, which can't be "
                f"aligned: {'; '.join(side.notes) or 'its bytes come from offsets'}.",
            )
        elif side.normalizes:
            add(
                f"normalizes_{which}",
                f"The {which}'s tokenizer ({side.name}) changes text before cutting it"
                f"{': ' + '; '.join(side.notes) if side.notes else ''}.",
            )
        if side.has_chat_template and not other.has_chat_template:
            add(
                "one_chat_template",
                f"Only the {which} has a chat template; for messages give the other one "
                "or train on prompts and completions.",
            )
        if side.padded_rows is not None and side.padded_rows < 0:
            add(
                f"head_too_small_{which}",
                f"The {which}'s head has {side.rows:,} rows for {side.size:,} ids: some ids can't "
                "be predicted. Resize the model's embeddings.",
            )
        elif side.padded_rows:
            add(
                f"padded_rows_{which}",
                f"The {which}'s head has {side.padded_rows:,} rows more than its tokenizer has "
                "ids; they are left out of every distribution.",
            )
    for mark in marks:
        if mark.teacher_tokens == 1 and mark.student_tokens != 1:
            add(
                "thinking_mark",
                f"The teacher has {mark.mark} as one token, the student "
                + (
                    "can't write it"
                    if mark.student_tokens is None
                    else f"needs {mark.student_tokens}"
                )
                + "; leave thinking out of the data, or add the token to the student.",
            )
    if not same and overlap.student_share > 0.99 and overlap.teacher_share > 0.99:
        add(
            "nearly_same",
            f"The two tokenizers share {overlap.smaller_share:.1%} of their tokens and still "
            "differ: two revisions of one tokenizer? If so, bring them to one and use direct KL.",
        )
    if text is not None:
        found.extend(_text_warnings(text, overlap))
    return tuple(found)


def _text_warnings(text: TextStatistics, overlap: Overlap) -> Iterator[AuditWarning]:
    if text.byte_coverage < 0.99:
        yield AuditWarning(
            "low_byte_coverage",
            f"Only {text.byte_coverage:.1%} of the text's bytes could be aligned; the rest takes "
            "no part in distillation.",
        )
    ratio = text.teacher_tokens_per_byte / max(text.student_tokens_per_byte, 1e-12)
    if ratio > 1.5 or ratio < 1 / 1.5:
        more, factor = ("teacher", ratio) if ratio > 1 else ("student", 1 / ratio)
        yield AuditWarning(
            "fertility",
            f"The {more} needs {factor:.1f} times as many tokens for this text; set its maximum "
            "length accordingly, or texts are cut short.",
        )
    total = sum(text.chunks.values())
    if total and text.chunks["M:N"] > 0.1 * total:
        yield AuditWarning(
            "many_to_many",
            f"{text.chunks['M:N'] / total:.0%} of the chunks have several tokens on both sides; "
            "losses that skip them see little of this text.",
        )
    if text.sampled:
        yield AuditWarning(
            "sampled",
            f"Only {text.bytes:,} of the text's {text.total_bytes:,} bytes were looked at, spread "
            "evenly over it.",
        )
    if text.bytes < 2_000:
        yield AuditWarning(
            "short_text",
            f"The sample text has only {text.bytes:,} bytes; shares on it say little.",
        )
