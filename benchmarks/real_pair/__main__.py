"""Run the rows that are missing on two real pairs, and write their tables and plots."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

# Set before the libraries that read it are loaded.
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import torch
from benchmarks.pages import update
from benchmarks.real_pair.cases import CASES, prepare
from benchmarks.real_pair.cells import NAMES, Place, device_name
from benchmarks.real_pair.grid import run_case
from benchmarks.real_pair.measure import Measured
from benchmarks.real_pair.tables import tables, write_plots, write_tables

from xtoken.training import TrainingInterrupted

RESULTS = Path("benchmarks/results/real_pair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help=f"default: {_defaults('steps')}")
    parser.add_argument("--batch-size", type=int, help=f"default: {_defaults('batch_size')}")
    parser.add_argument(
        "--max-length",
        type=int,
        help=f"tokens of a packed sequence; default: {_defaults('max_length')}",
    )
    parser.add_argument("--rate", type=float, help=f"default: {_defaults('learning_rate')}")
    parser.add_argument("--held-out", type=int, help=f"passages; {_defaults('held_out')}")
    parser.add_argument("--problems", type=int, default=60, help="sums of each size")
    parser.add_argument(
        "--tasks-data",
        type=Path,
        metavar="DIR",
        help="folder with lambada_openai.jsonl and piqa.jsonl; without it they are not run",
    )
    parser.add_argument("--tasks-limit", type=int, default=100, help="rows of each task")
    parser.add_argument("--teacher-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=Path(".cache/real_pair"))
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    parser.add_argument("--page", type=Path, help="put the tables into this page of the docs")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        for name in [] if args.tables_only else args.cases:
            run_one(name, args)
    except TrainingInterrupted:
        raise SystemExit("Stopped. Finished rows are kept; the same command goes on.") from None
    print(write_tables(args.output))
    write_plots(args.output)
    if args.page:
        update(args.page, tables(args.output))


def run_one(name: str, args: argparse.Namespace) -> None:
    """Make a case ready and run its missing cells."""
    asked: dict[str, Any] = {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "learning_rate": args.rate,
        "held_out": args.held_out,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    ready = prepare(replace(CASES[name], **given), args.cache, _say)
    place = Place(
        device_name(args.device),
        args.cache / name / f"states-{args.teacher_dtype}",
        args.teacher_dtype,
    )
    measured = Measured(args.problems, args.tasks_data, args.tasks_limit)
    run_case(ready, args.output, place, measured, rows=args.rows, seeds=args.seeds)


def _say(text: str) -> None:
    print(text, flush=True)


def _defaults(key: str) -> str:
    return ", ".join(f"{getattr(case, key)} ({name})" for name, case in CASES.items())


if __name__ == "__main__":
    main()
