"""Every benchmark, short or full, into one table and one plot.

    .venv/bin/python benchmarks/bench_all.py            # what `make bench` runs: minutes
    .venv/bin/python benchmarks/bench_all.py --full     # all settings: about two hours on two cores
    .venv/bin/python benchmarks/bench_all.py --only losses,chunked_head

Writes benchmarks.json, benchmarks.md and benchmarks.png into --output (benchmarks/results; the
full form's into benchmarks/results/full). A benchmark whose assets aren't there is left out, and
the table says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import ENVIRONMENT, write_json
from tables import markdown

HERE = Path(__file__).resolve().parent
# Each script with the options of its short form (the full form has `--full` or its defaults).
SCRIPTS: dict[str, list[str]] = {
    "align": ["--runs", "5", "--pairs", "32", "--characters", "100000"],
    "projection": ["--runs", "2"],
    "losses": [],
    "chunked_head": ["--runs", "5"],
    "step": [],
}
HAS_FULL = ("losses", "chunked_head", "step")


def run_script(name: str, full: bool, rest: list[str]) -> dict[str, Any]:
    """Run one benchmark; return its result, its table, and what went wrong if anything did."""
    command = [sys.executable, str(HERE / f"bench_{name}.py")]
    if not full:
        command += SCRIPTS[name]
    elif name in HAS_FULL:
        command.append("--full")
    began = time.monotonic()
    found: dict[str, Any] = {"name": name}
    if name in HAS_FULL:
        file = HERE / f".{name}.json"
        done = _run([*command, *rest, "--json", str(file)])
        if file.exists():
            found["result"] = json.loads(file.read_text())
            file.unlink()
    else:
        done = _run(command)
    if done.returncode:
        found["problem"] = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    found["output"] = done.stdout
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def page(parts: list[dict[str, Any]], full: bool) -> str:
    """Return the tables of all benchmarks as Markdown."""
    lines = [f"# Benchmarks, {'full' if full else 'short'} form", ""]
    for part in parts:
        if "problem" in part:
            lines += [f"## {part['name']}", "", f"Not measured: {part['problem']}", ""]
        elif "result" in part:
            lines += [markdown(part["result"])]
        else:
            lines += [f"## {part['name']}", "", "```", part["output"].rstrip(), "```", ""]
        lines += [f"({part['name']}: {part['seconds']:.0f} s)", ""]
    return "\n".join(lines)


def plot(parts: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory by length, and the ratios that have goals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = {part["name"]: part["result"] for part in parts if "result" in part}
    figure, axes = pyplot.subplots(2, 2, figsize=(14, 10), layout="constrained")
    for axis, what, unit in ((axes[0, 0], "wall_s", "seconds"), (axes[0, 1], "memory_mib", "MiB")):
        _lines(axis, results.get("losses"), what)
        axis.set(title=f"Losses from logits: {unit}", xlabel="student tokens", ylabel=unit)
    _bars(axes[1, 0], results.get("chunked_head"), "Chunked head and full logits: seconds")
    _bars(axes[1, 1], results.get("step"), "Whole training step: seconds")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)
    partial.replace(path)


def _lines(axis: Any, result: dict[str, Any] | None, what: str) -> None:
    if result is None:
        axis.text(0.5, 0.5, "not measured", ha="center")
        return
    from matplotlib import colormaps

    # More contenders than the ten colours of the default.
    axis.set_prop_cycle(color=colormaps["tab20"].colors)
    for name in dict.fromkeys(m["name"] for m in result["measurements"]):
        own = sorted(
            (m["length"], m["wall_s"]["median"] if what == "wall_s" else m[what])
            for m in result["measurements"]
            if m["name"] == name
        )
        style = "--" if name.startswith(("naive", "trl", "floor")) else "-"
        axis.plot([o[0] for o in own], [o[1] for o in own], style, marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.legend(fontsize=7, ncols=2)


def _bars(axis: Any, result: dict[str, Any] | None, title: str) -> None:
    axis.set_title(title)
    if result is None:
        axis.text(0.5, 0.5, "not measured", ha="center")
        return
    rows = [m for m in result["measurements"] if m["runs"]]
    names = [f"{m['name']}, {m['length']}" for m in rows]
    median = [m["wall_s"]["median"] for m in rows]
    below = [m["wall_s"]["median"] - m["wall_s"]["min"] for m in rows]
    above = [m["wall_s"]["max"] - m["wall_s"]["median"] for m in rows]
    axis.barh(names, median, xerr=[below, above], color="tab:blue", ecolor="black")
    axis.invert_yaxis()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", help=f"some of {', '.join(SCRIPTS)}")
    parser.add_argument("--output", type=Path)
    options, rest = parser.parse_known_args()
    names = options.only.split(",") if options.only else list(SCRIPTS)
    for name in names:
        if name not in SCRIPTS:
            raise SystemExit(f"Unknown benchmark {name!r}; expected {', '.join(SCRIPTS)}.")
    if rest and len(names) != 1:
        raise SystemExit(f"{' '.join(rest)}: further options go to one benchmark; add --only NAME.")
    output = options.output or HERE / "results" / ("full" if options.full else "")
    parts = []
    for name in names:
        print(f"Running {name} ...", file=sys.stderr, flush=True)
        parts.append(run_script(name, options.full, rest))
        print(f"  {parts[-1]['seconds']:.0f} s {parts[-1].get('problem', '')}", file=sys.stderr)
        # After each: a long run that is cut off leaves what it has.
        write_json(output / "benchmarks.json", {"full": options.full, "parts": parts})
        partial = output / "benchmarks.md.partial"
        partial.write_text(page(parts, options.full))
        partial.replace(output / "benchmarks.md")
        plot(parts, output / "benchmarks.png")
    print(page(parts, options.full))
    print(f"Written: {output}/benchmarks.json, benchmarks.md, benchmarks.png", file=sys.stderr)


if __name__ == "__main__":
    main()
