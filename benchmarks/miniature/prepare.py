"""Make a column's tokenizers and models, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from benchmarks.miniature.columns import build_column, read_prose
from benchmarks.miniature.sizes import SIZES

torch.set_num_threads(1)
build_column(sys.argv[2], SIZES[sys.argv[1]], Path(".cache/miniature"), read_prose())
