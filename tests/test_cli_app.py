import errno
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from xtoken import __version__
from xtoken.cli import VERBS
from xtoken.cli._app import app, errors_as_messages
from xtoken.errors import ConfigError, DataError

run = CliRunner().invoke
# 2 cores may be busy; an import of torch alone takes several seconds on them.
HEAVY = {"torch", "transformers", "datasets", "pydantic", "rich.console"}


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from xtoken.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_version():
    result = run(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"xtoken {__version__}\n")


def test_help_names_every_verb():
    result = run(app, ["--help"])
    assert result.exit_code == 0
    for verb in VERBS:
        assert f"  {verb}  " in result.stdout
        assert run(app, [verb, "--help"]).exit_code == 0


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = (
        "import sys\n"
        "from xtoken.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("[]\n"), result.stdout[-200:]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adit"], "Did you mean 'audit'?"),
        (["audit", "x"], "Missing argument"),
        (["audit", "x", "y", "--txt", "z"], "--text"),
        (["project", "show"], "Missing argument"),
        (["project", "build", "a", "b"], "--output"),
        (["project", "build", "a", "b", "-o", "w", "--max-pieces", "many"], "valid integer"),
    ],
)
def test_bad_usage_exits_2(arguments, says):
    result = run(app, arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DataError("no rows"), 1, "error: no rows\n"),
        (ConfigError("line one\n  line two"), 2, "error: line one\n  line two\n"),
        (KeyboardInterrupt(), 130, "error: Interrupted.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "a/b: No space left"),
        (ZeroDivisionError("oops"), 1, "XTOKEN_DEBUG=1"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(error, code, says, capsys, monkeypatch):
    monkeypatch.delenv("XTOKEN_DEBUG", raising=False)
    with pytest.raises(typer.Exit) as caught, errors_as_messages():
        raise error
    assert caught.value.exit_code == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert not captured.out
    monkeypatch.setenv("XTOKEN_DEBUG", "1")
    with pytest.raises(type(error)), errors_as_messages():
        raise error


def test_a_users_mistake_shows_no_traceback_unless_asked():
    result = command("audit", "./nowhere", "./nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("error: There is no directory './nowhere'")
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    debugged = command("audit", "./nowhere", "./nowhere", XTOKEN_DEBUG="1")
    assert debugged.returncode != 0
    assert "Traceback" in debugged.stderr


def test_a_closed_pipe_is_no_error(tiny_pair):
    code = "from xtoken.cli import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", code, "audit", *map(str, tiny_pair)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in result.stderr


def test_a_terminal_without_unicode_gets_escapes(tiny_pair):
    result = command(
        "align", *map(str, tiny_pair), "piñas 狐狸", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
