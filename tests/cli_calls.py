"""Calls of the command line in this process, and what all good and all bad ones have in common."""

from typer.testing import CliRunner

from xtoken.cli._app import app


def ok(*arguments, **options):
    """Run a command that works; returns its stdout."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(code, *arguments, **options):
    """Run a command that is refused: nothing on stdout, no traceback; returns its stderr."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr
