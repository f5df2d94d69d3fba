"""What the documentation's generator runs: the command line's reference, and formulas as MathML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File

MARK = "<!-- every verb -->"
RESULTS = "benchmarks/results/"
PLOTS = "plots/"
# TeX as GitHub reads it: a fence of its own, or inside a line with backticks.
FORMULA = re.compile(r"^```math\n(.*?)^```$|\$`([^`]+)`\$", re.DOTALL | re.MULTILINE)


def on_files(files: Any, *, config: Any) -> Any:
    """Add the benchmarks' plots, which lie outside of docs/ (called by MkDocs once)."""
    for file in sorted(Path(RESULTS).rglob("*.[ps][nv]g")):
        name = PLOTS + file.relative_to(RESULTS).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(file.resolve())))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Put the reference in place of its mark, plots where the site has them, and MathML for TeX."""
    markdown = FORMULA.sub(_mathml, markdown)
    markdown = markdown.replace(f"](../{RESULTS}", f"]({PLOTS}")
    return markdown.replace(MARK, cli_reference()) if MARK in markdown else markdown


def _mathml(found: re.Match[str]) -> str:
    block, inline = found.groups()
    if inline:
        # The span keeps Markdown from taking it for a block at a line's start.
        return f'<span class="math">{convert(inline)}</span>'
    drawn = convert(" ".join(block.split()), display="block")
    return f'<div class="math">{drawn}</div>'


def cli_reference() -> str:
    """Return Markdown with a section for each verb: its usage, arguments and options."""
    from xtoken.cli import app

    command = typer.main.get_command(app)
    return "\n".join(_sections(command, "xtoken", click.Context(command, info_name="xtoken")))


def _sections(command: Any, name: str, context: Any) -> list[str]:
    children = getattr(command, "commands", None)
    if children:
        lines = [] if name == "xtoken" else [f"## {name}", "", command.help or "", ""]
        for child in sorted(children):
            inner = click.Context(children[child], parent=context, info_name=child)
            lines += _sections(children[child], f"{name} {child}", inner)
        return lines
    usage = " ".join(command.collect_usage_pieces(context)).replace("{", "").replace("}", "")
    usage = usage.replace("......", "...")  # a name with dots of its own gets another three
    lines = [f"## {name}", "", command.help or "", "", f"    {name} {usage}", ""]
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        record = parameter.get_help_record(context)
        if record is None:
            continue
        label, text = record
        # Types in angle brackets say nothing that the name doesn't.
        label = re.sub(r" <[^>]*>", "", label)
        rows.append(f"| `{_cell(label)}` | {_cell(text)} |")
    return [*lines, "| argument or option | |", "|---|---|", *rows, ""] if rows else lines


def _cell(text: str) -> str:
    # A bar would end the cell.
    return " ".join(text.split()).replace("|", "\\|")
