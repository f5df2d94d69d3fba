"""A folder with what the README and the documentation name: models, data, texts."""

import json
import shutil
from pathlib import Path


def lay_out(folder: Path, pair, texts) -> Path:
    """Put path/to/student, path/to/teacher and train.jsonl into a folder."""
    for path, source in zip(("student", "teacher"), pair, strict=True):
        shutil.copytree(source, folder / "path" / "to" / path)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(rows)
    return folder
