"""Run the grid, or what is missing of it, and write its tables and plots."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# One core, set before the libraries that read it are loaded.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from benchmarks.miniature.cells import ROWS
from benchmarks.miniature.columns import COLUMNS
from benchmarks.miniature.grid import run_grid
from benchmarks.miniature.plots import write_plots
from benchmarks.miniature.sizes import SIZES
from benchmarks.miniature.tables import tables, write_tables
from benchmarks.pages import update

RESULTS = Path("benchmarks/results/miniature")
QUICK_ROWS = ["continued", "gold", "h_kl", "p_kl", "p_kl_fixed_scale", "path_kl_fixed_scale"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size")
    size.add_argument("--full", action="store_const", const="full", dest="size")
    size.add_argument("--size", choices=list(SIZES), help="`large` needs a GPU")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="these rows")
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS))
    parser.add_argument("--rate", type=float, help="for every row, in place of the sweep")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS}, or -SIZE beside it")
    parser.add_argument("--cache", type=Path, default=Path(".cache/miniature"))
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    parser.add_argument("--page", type=Path, help="put the tables into this page of the docs")
    args = parser.parse_args()
    name = args.size or "quick"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    output = args.output or (RESULTS if name == "full" else Path(f"runs/miniature-{name}"))
    rows, columns, seeds = list(ROWS), list(COLUMNS), [0, 1, 2]
    if name == "quick":
        rows, columns, seeds = QUICK_ROWS, ["teacher_splits"], [0]
    if not args.tables_only:
        run_grid(
            SIZES[name],
            output,
            args.cache,
            rows=args.only or rows,
            columns=args.columns or columns,
            rate=args.rate,
            seeds=args.seeds or seeds,
        )
    print(write_tables(output))
    write_plots(output)
    if args.page:
        update(args.page, tables(output))


if __name__ == "__main__":
    main()
