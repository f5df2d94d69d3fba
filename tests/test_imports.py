"""Rooms import one way: nothing but the verbs and the demo knows of the command line or reports."""

from __future__ import annotations

import ast
from pathlib import Path

import xtoken

ROOT = Path(xtoken.__file__).parent
ON_TOP = ("cli", "report", "demo", "__main__")


def imported(path: Path) -> set[str]:
    """Return the modules of xtoken that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {name for name in found if name.startswith("xtoken")}


def test_only_the_top_imports_the_top():
    upward = ("xtoken.cli", "xtoken.report", "xtoken.demo")
    wrong = {}
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT)
        if place.parts[0].removesuffix(".py") in ON_TOP:
            continue
        found = {n for n in imported(path) if any(n == u or n.startswith(u + ".") for u in upward)}
        if found:
            wrong[str(place)] = found
    assert not wrong


def test_reports_do_not_import_the_verbs():
    for path in (ROOT / "report").rglob("*.py"):
        assert not {n for n in imported(path) if n.startswith("xtoken.cli")}, path
