"""How this room writes its files: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> Path:
    """Write UTF-8 text under a temporary name beside the file, then rename; makes the folder.

    `errors` is for what isn't valid Unicode, as `open` takes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors=errors)
    os.replace(partial, path)
    return path
