"""Ratios between contenders, and the tables that show measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from measuring import Measurement


@dataclass(frozen=True)
class Ratio:
    """One contender's time or memory divided by another's, and the goal that it is held to.

    `lengths`: the settings that the goal speaks of; empty means all.
    """

    above: str
    below: str
    what: Literal["seconds", "memory"]
    at_least: float | None = None
    at_most: float | None = None
    lengths: tuple[int, ...] = ()

    @property
    def goal(self) -> str:
        """The goal in words, empty if there is none."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    def met(self, value: float) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


def compare(measurements: Sequence[Measurement], ratios: Sequence[Ratio]) -> list[dict[str, Any]]:
    """Return every ratio at every length at which both contenders were measured."""
    found = {(m.name, m.length): m for m in measurements}
    rows = []
    for ratio in ratios:
        for length in sorted({m.length for m in measurements}):
            above, below = found.get((ratio.above, length)), found.get((ratio.below, length))
            if above is None or below is None:
                continue
            if ratio.what == "seconds":
                value = above.seconds / below.seconds
            else:
                value = above.memory_mib / max(below.memory_mib, 0.1)
            judged = not ratio.lengths or length in ratio.lengths
            row = {
                "ratio": f"{ratio.above} / {ratio.below}",
                "of": ratio.what,
                "length": length,
                "value": round(value, 3),
                "goal": ratio.goal if judged else "",
                "met": ratio.met(value) if judged else None,
            }
            if ratio.what == "seconds" and above.cpu_s and below.cpu_s:
                row["cpu_time"] = round(above.cpu_seconds / below.cpu_seconds, 3)
            rows.append(row)
    return rows


def judge(
    name: str, of: str, length: int, value: float, *, at_most: float, unit: str = ""
) -> dict[str, Any]:
    """Return a figure that is held to a goal by itself, as a row beside the ratios."""
    return {
        "ratio": name,
        "of": of,
        "length": length,
        "value": round(value, 3),
        "goal": f"at most {at_most:g}{unit}",
        "met": value <= at_most,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return a result as Markdown: measurements, ratios, notes."""
    lines = [f"## {result['title']}", "", f"{result['what'].capitalize()}. {_setting(result)}", ""]
    lines += [
        "| | T | wall s, median (min - max) | CPU s | MiB | runs |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for m in sorted(result["measurements"], key=lambda m: m["length"]):
        wall, cpu = m["wall_s"], m["cpu_s"]
        spread = f"{wall['median']:.3f} ({wall['min']:.3f} - {wall['max']:.3f})"
        cpu_text = f"{cpu['median']:.3f}" if cpu else ""
        lines.append(
            f"| {m['name']} | {m['length']} | {spread} | {cpu_text} | {m['memory_mib']:,.0f} "
            f"| {max(m['runs'], 1)} |"
        )
    if result["ratios"]:
        lines += ["", "| ratio | of | T | value | by CPU time | goal | |"]
        lines += ["|---|---|--:|--:|--:|---|---|"]
    for row in result["ratios"]:
        verdict = {True: "met", False: "**missed**", None: ""}[row["met"]]
        lines.append(
            f"| {row['ratio']} | {row['of']} | {row['length']} | {row['value']:.2f} "
            f"| {row.get('cpu_time', '')} | {row['goal']} | {verdict} |"
        )
    if result.get("notes"):
        lines += ["", *[f"- {note}" for note in result["notes"]]]
    return "\n".join([*lines, ""])


def costs(result: dict[str, Any], names: Sequence[str], length: int) -> str:
    """Return what losses cost beside the floor at one length, the cheapest first, as Markdown."""
    found = {m["name"]: m for m in result["measurements"] if m["length"] == length}
    floor = found["floor"]["wall_s"]["median"]
    lines = ["| loss | seconds (lowest - highest) | of the floor | MiB |", "|---|--:|--:|--:|"]
    for name in sorted(("floor", *names), key=lambda name: found[name]["wall_s"]["median"]):
        wall, memory = found[name]["wall_s"], found[name]["memory_mib"]
        lines.append(
            f"| {name} | {wall['median']:.2f} ({wall['min']:.2f} - {wall['max']:.2f}) "
            f"| {wall['median'] / floor:.1f} | {memory:,.0f} |"
        )
    runs = min(found[name]["runs"] for name in names)
    return "\n".join([*lines, "", f"T = {length}, medians of {runs} runs. {_setting(result)}"])


def _setting(result: dict[str, Any]) -> str:
    pair, on = result.get("pair", {}), result["machine"]
    parts = []
    if pair:
        parts.append(
            f"Student {pair['student']} ({pair['student_vocabulary']:,} ids), teacher "
            f"{pair['teacher']} ({pair['teacher_vocabulary']:,})."
        )
    where = f"{on['gpu']}, " if "gpu" in on else ""
    parts.append(
        f"{where}{on['processor']}, {on['threads']} of {on['cores']} cores, load {on['load']}; "
        f"Python {on['python']}, torch {on['torch']}."
    )
    return " ".join(parts)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(markdown(result))
