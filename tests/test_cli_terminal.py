"""What a terminal shows while something runs: bars that fit, go when done, and never in a pipe."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from xtoken.cli import _output
from xtoken.cli._app import app
from xtoken.training.callbacks import ProgressReport

ERASE = "\x1b[2K"


def console_of(width, *, terminal=True):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def lines_of(text):
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize("width", [80, 40])
def test_a_bar_fits_says_how_far_it_is_and_goes(monkeypatch, width):
    target = console_of(width)
    monkeypatch.setattr(_output, "console", lambda **_: target)
    with _output.progress("Comparing on the text (student)", 200) as advance:
        advance(80)
    shown = target.file.getvalue()
    last = [line for line in lines_of(shown) if "Comparing" in line][-1]
    assert "40%" in last
    assert "Comparing on the text (student)" in last
    assert ("━" in last) == (width == 80)
    assert max(map(len, lines_of(shown))) <= width
    assert "Comparing" not in shown.rpartition(ERASE)[2], "it is wiped off at the end"


@pytest.mark.parametrize("width", [120, 80, 40])
def test_trainings_bar_keeps_the_step_in_sight(monkeypatch, width):
    target = console_of(width)
    monkeypatch.setattr("rich.console.Console", lambda **_: target)
    report = ProgressReport("bar")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=2000, global_step=0)
    report.on_train_begin(None, state, None)
    state.global_step = 1234
    report.on_step_end(None, state, None)
    logs = {"loss": 12.034, "ce": 6.0161, "kd": 0.085055, "tokens_per_second": 12798.0}
    report.on_log(None, state, None, logs | {"learning_rate": 1e-3})
    report.close()
    shown = lines_of(target.file.getvalue())
    assert "1234/2000" in shown[-1]
    assert "loss 12.03" in shown[-1]
    assert max(map(len, shown)) <= width


def test_a_pipe_gets_no_bars(tiny_pair, tmp_path, capfd, monkeypatch):
    pytest.importorskip("lm_eval")
    rows = [{"query": f"{a} + 1 =", "choices": [str(a), str(a + 1)], "gold": 1} for a in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: "
        f"{{test: {tmp_path / 'sums.jsonl'}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\n"
        "doc_to_target: gold\n"
    )
    from tqdm import tqdm

    kept = vars(tqdm)["__init__"]
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    command = ["eval", str(tiny_pair[0]), "--tasks", "sums", "--include-path", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--limit", "2"])
    assert result.exit_code == 0, result.output
    assert "sums acc" in result.stdout
    said = result.stderr + capfd.readouterr().err
    assert "Running loglikelihood" not in said
    assert "%|" not in said
    assert "not a git repository" not in said
    assert vars(tqdm)["__init__"] is kept, "other bars of the process are as they were"


@pytest.mark.parametrize("width", [80, 40])
def test_a_real_terminal_is_left_clean(tiny_pair, tmp_path, tiny_text, width):
    (tmp_path / "text.txt").write_text("\n".join(tiny_text * 3))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    unset = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    process = subprocess.Popen(
        [sys.executable, "-m", "xtoken", "eval", str(tiny_pair[0]), "--text", "text.txt"],
        cwd=tmp_path,
        env=environment | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.stdout is not None
    table = process.stdout.read().decode()
    assert process.wait(timeout=60) == 0, shown
    assert "bits per byte" in table
    assert "\x1b" not in table
    text = shown.decode()
    assert "Reading the text (student)" in text
    assert "%" in text
    assert max(map(len, lines_of(text))) <= width
    assert not lines_of(text.rpartition(ERASE)[2])
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is back"
