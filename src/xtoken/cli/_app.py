"""The typer application: version, quiet libraries, and errors as one message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xtoken._version import __version__
from xtoken.errors import XTokenError

DEBUG = "XTOKEN_DEBUG"
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
}


def debugging() -> bool:
    """Tell whether the user asked for tracebacks and the libraries' own messages."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with errors_as_messages():
            return super().invoke(ctx)


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Print what goes wrong as one message on stderr and exit with the error's code."""
    try:
        yield
    except XTokenError as error:
        if debugging():
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if debugging():
            raise
        _fail("Interrupted.", 130)
    except OSError as error:
        if debugging() or error.errno == errno.EPIPE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        # Typer's own: usage errors, --help, exits.
        if debugging() or type(error).__module__.startswith(("typer", "click")):
            raise
        _fail(
            f"Unexpected {type(error).__name__}: {error}\nThis is a fault of xtoken. Set {DEBUG}=1 "
            "to see where it happened, and please report it.",
            1,
        )


def _fail(message: str, code: int) -> None:
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {_escape(message)}", soft_wrap=True
        )
    else:
        print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _quiet_libraries() -> None:
    """Keep warnings, logs and progress bars of the libraries below out of the user's terminal."""
    if debugging():
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Boxes and colours for people, plain text for pipes.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"xtoken {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Distil one language model into another, whatever their tokenizers."""
    _quiet_libraries()
