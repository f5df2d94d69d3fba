"""How lm-evaluation-harness shows what it does: bars on a terminal only, gone when done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def tidy_output() -> Iterator[None]:
    """Keep stdout for the caller's results, and stderr free of bars where it is no terminal."""
    from lm_eval import evaluator
    from tqdm.std import tqdm

    begin: Any = tqdm.__init__
    kept = vars(tqdm)["__init__"]
    commit: Any = evaluator.get_git_commit_hash
    terminal = sys.stderr.isatty()

    def begin_tidy(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"leave": False, "dynamic_ncols": True}
        if not terminal:
            kwargs["disable"] = True
        begin(self, *args, **kwargs)

    tqdm.__init__ = begin_tidy
    evaluator.get_git_commit_hash = _commit
    try:
        # lm-eval prints as it goes.
        with redirect_stdout(sys.stderr):
            yield
    finally:
        tqdm.__init__ = kept
        evaluator.get_git_commit_hash = commit


def _commit() -> str | None:
    """Return the working folder's commit as lm-eval does, but without git's own complaint."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
