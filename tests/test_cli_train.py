"""`xtoken train` on tiny models: what it leaves, how it stops and goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_train import run_xtoken, write_run
from xtoken.config import RunConfig, load_run


@pytest.fixture
def files(tiny_pair, tiny_text, tmp_path, monkeypatch):
    """A run file in the current directory, with paths relative to it."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path, tiny_pair, tiny_text)


def ok(*arguments):
    result = run_xtoken("train", "run.yaml", *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_file_becomes_a_student_that_transformers_loads(files):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = ok("data.eval_split=0.2", "loss.kind=h_kl")
    assert "bits per byte" in result.stdout
    assert "4 steps in " in result.stdout
    assert "\x1b" not in result.output
    tokenizer = AutoTokenizer.from_pretrained("out")
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model(**tokenizer("The quick", return_tensors="pt")).logits.isfinite().all()
    assert load_run("out/run.yaml").loss.kind == "h_kl"
    again = run_xtoken("train", "run.yaml")
    assert again.exit_code == 2
    assert "already holds a run" in again.stderr
    assert run_xtoken("eval", "out", "--text", "run.yaml").exit_code == 0


def test_json_is_the_result_alone(files):
    result = ok("--json", "training.max_steps=1")
    assert json.loads(result.stdout)["steps"] == 1


def test_dry_run_shows_the_run_and_writes_nothing(files):
    before = sorted(files.rglob("*"))
    shown = ok("--dry-run", "loss.temperature=2").stdout
    for part in ("temperature: 2", "together", "student", "100.0% of the bytes aligned"):
        assert part in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= max(80, len(str(files)) + 120)
    plan = json.loads(ok("--dry-run", "--json").stdout)
    assert RunConfig.parse(plan["run"]).to_dict() == plan["run"]
    assert plan["memory_gib"]["total"] > 0
    assert sorted(files.rglob("*")) == before


def test_resuming_needs_a_checkpoint_and_goes_on_from_it(files):
    nothing = run_xtoken("train", "run.yaml", "--resume")
    assert nothing.exit_code == 1
    assert "no complete checkpoint" in nothing.stderr
    ok("training.max_steps=2")
    result = ok("--resume")
    assert "checkpoint-2" in result.stderr
    assert "4 steps" in result.stdout
    torn = Path("out/checkpoint-4/model.safetensors")
    torn.write_bytes(torn.read_bytes()[:100])
    result = ok("--resume", "training.max_steps=6")
    assert "checkpoint-2" in result.stderr, "the damaged one is passed over"


def test_ctrl_c_saves_and_says_how_to_go_on(files):
    command = [sys.executable, "-m", "xtoken", "train", "run.yaml", "training.max_steps=5000"]
    command += ["training.save_steps=10000"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate(timeout=120)
    message = "".join(seen) + rest
    assert process.returncode == 130, message
    assert "--resume" in rest
    assert "Traceback" not in message
    assert not out
    (checkpoint,) = Path("out").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    result = ok("--resume", f"training.max_steps={step + 1}")
    assert f"{step + 1} steps" in result.stdout


def test_an_error_before_training_leaves_an_earlier_output_alone(files, tiny_pair):
    ok("training.max_steps=2")
    kept = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("train.jsonl").write_text("{")
    assert run_xtoken("train", "run.yaml", "--resume").exit_code == 1
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == kept
