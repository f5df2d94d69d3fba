"""What the tests of `xtoken train` share."""

import json
from pathlib import Path

from typer.testing import CliRunner

from xtoken.cli._app import app


def run_xtoken(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_run(folder: Path, pair, texts) -> Path:
    """Write a run file for a pair of models and its data into a folder."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts * 3)
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")
    (folder / "run.yaml").write_text(f"""\
student: {{model: {pair[0]}}}
teachers:
  - model: {pair[1]}
data: {{train: train.jsonl, max_length: 48}}
training:
  use_cpu: true
  max_steps: 4
  per_device_train_batch_size: 2
  logging_steps: 1
  save_steps: 2
output_dir: out
""")
    return folder
