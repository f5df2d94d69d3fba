"""Audit real tokenizers pairwise and print the tables of docs/audit.md as Markdown.

    python scripts/audit_table.py            # the tokenizers that `make assets-all` fetched
    python scripts/audit_table.py --write    # also put the tables into docs/audit.md
    python scripts/audit_table.py llama-3 qwen2 DIR ...

Needs no network. About two seconds a pair.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from xtoken.audit import AuditReport, audit
from xtoken.audit.coverage import byte_strings, measure_overlap
from xtoken.vocab import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("XTOKEN_ASSETS", ROOT / ".cache" / "assets"))
PAGE = ROOT / "docs" / "audit.md"
BEGIN, END = "<!-- tables: scripts/audit_table.py -->\n", "<!-- end of tables -->\n"
NAMES = (
    *("llama-3", "qwen2", "o200k", "gemma-3", "phi-3"),
    *("gpt-2", "smollm2", "starcoder", "deepseek-llm"),
)
# NeMo-RL's guide (Aug 2026), on the models' token strings: share of the smaller vocabulary.
PUBLISHED = (
    ("Qwen3 and Llama-3", "qwen2", "llama-3", 0.848),
    ("Llama-3 and gpt-oss", "llama-3", "o200k", 0.798),
    ("Llama-3 and Gemma-3", "llama-3", "gemma-3", 0.674),
    ("Qwen3 and gpt-oss", "qwen2", "o200k", 0.646),
    ("Qwen3 and Gemma-3", "qwen2", "gemma-3", 0.632),
)
LOSSES = {"p_kl": "P-KL", "h_kl": "H-KL", "direct": "direct"}


def matrix(title: str, names: list[str], cells: dict[tuple[str, str], str]) -> list[str]:
    """Return a Markdown table, a row for each first name and a column for each second."""
    lines = [f"| {title} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in names:
        lines.append(f"| **{row}** | " + " | ".join(cells.get((row, c), "") for c in names) + " |")
    return lines


def numerals(report: AuditReport) -> str:
    """Say which critical classes are outside, shortly."""
    short = {"numeral_1": "1", "numeral_2": "2", "numeral_3": "3", "punctuation": "marks"}
    outside = []
    for key, name in short.items():
        row = report.class_row(key)
        if row is None:
            continue
        student = row.student_ids and row.student_exact < 0.9 * row.student_ids
        teacher = row.teacher_ids and row.teacher_exact < 0.9 * row.teacher_ids
        if student or teacher:
            outside.append(name + ("" if student and teacher else " (S)" if student else " (T)"))
    return ", ".join(outside)


def tables(names: list[str]) -> str:
    """Audit every ordered pair and return the Markdown."""
    vocabs = {name: read(name) for name in names}
    shared: dict[tuple[str, str], str] = {}
    verdicts: dict[tuple[str, str], str] = {}
    for student in names:
        for teacher in names:
            if student == teacher:
                continue
            report = audit(vocabs[student], vocabs[teacher])
            print(f"{student} <- {teacher}", file=sys.stderr)
            shared[student, teacher] = f"{report.overlap.student_share:.3f}"
            outside = numerals(report)
            loss = LOSSES[report.verdict.x_token or "direct"]
            verdicts[student, teacher] = f"{loss}: {outside}" if outside else loss
    lines = ["### The tokenizers", "", "| name | ids | distinct byte strings | numerals kept |"]
    lines += ["|---|---|---|---|"]
    for name in names:
        strings = byte_strings(vocabs[name])
        kept = 1 + (b"47" in strings) + (b"471" in strings)
        digits = "single digits" if kept == 1 else f"to {kept} digits"
        lines.append(f"| {name} | {len(vocabs[name]):,} | {len(strings):,} | {digits} |")
    lines += ["", "### Share of the row's tokens that the column's tokenizer has too", ""]
    lines += matrix("", names, shared)
    lines += ["", "### X-Token's loss for a student (row) and a teacher (column)", ""]
    lines += matrix("student \\ teacher", names, verdicts)
    lines += published(vocabs)
    return "\n".join(lines) + "\n"


def published(vocabs: dict[str, Vocabulary]) -> list[str]:
    """Return the published overlaps beside ours, by bytes and by token strings."""
    found = []
    for title, one, other, share in PUBLISHED:
        if one not in vocabs or other not in vocabs:
            continue
        overlap = measure_overlap(byte_strings(vocabs[one]), byte_strings(vocabs[other]))
        by_text = share_of_smaller(*(spelt(vocabs[name]) for name in (one, other)))
        by_decoding = decoded_share(vocabs[one], vocabs[other])
        found.append(
            f"| {title} | {share:.3f} | {overlap.smaller_share:.3f} | {by_text:.3f} | "
            f"{by_decoding:.3f} | {by_decoding - share:+.3f} |"
        )
    if not found:
        return []
    return [
        *("", "### Beside NeMo-RL's published overlaps (of the smaller vocabulary)", ""),
        "| pair | published | bytes | spelt as the tokenizer does | decoded, over ids | last - "
        "published |",
        *("|---|---|---|---|---|---|", *found),
    ]


def spelt(vocab: Vocabulary) -> set[str]:
    """Return the tokens as their tokenizer spells them (`Ġthe`, `▁the`)."""
    return {vocab.token_text(token) for token in range(len(vocab))} - {""}


def share_of_smaller(one: set[str], other: set[str]) -> float:
    """Return how much of the smaller set the other has."""
    return len(one & other) / min(len(one), len(other))


def decoded_share(one: Vocabulary, other: Vocabulary) -> float:
    """Return shared decoded strings / all ids of the smaller vocabulary.

    Pieces of characters decode to U+FFFD and count as one string; special tokens are in the
    denominator and match nothing.
    """
    decoded = [{b.decode(errors="replace") for b in byte_strings(v)} for v in (one, other)]
    return len(decoded[0] & decoded[1]) / min(len(one), len(other))


def read(name: str) -> Vocabulary:
    """Read a tokenizer of the assets by its name, or any directory."""
    folder = ASSETS / "vocab" / name
    return Vocabulary.from_pretrained(folder if folder.is_dir() else name)


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/audit.md")
    given = parser.parse_args()
    names = given.names or [name for name in NAMES if (ASSETS / "vocab" / name).is_dir()]
    if len(names) < 2:
        parser.error(f"no tokenizers in {ASSETS}; run `make assets-all`, or name directories")
    text = tables(names)
    print(text)
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        partial = PAGE.with_suffix(".partial")
        partial.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
        os.replace(partial, PAGE)


if __name__ == "__main__":
    main()
