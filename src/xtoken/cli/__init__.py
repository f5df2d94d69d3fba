"""The command line: one file a verb, registered by its name in `VERBS`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from xtoken.cli._app import app

# In the order of `xtoken --help`. Each module registers itself on `app`.
VERBS = ("audit", "align", "project", "train", "eval", "report", "demo")

for _verb in VERBS:
    importlib.import_module(f"xtoken.cli.{_verb}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or run file, 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal without Unicode gets escapes instead of an error.
            stream.reconfigure(errors="backslashreplace")
    app(args=arguments, prog_name="xtoken")
