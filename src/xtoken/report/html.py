"""One self-contained HTML page for a run, several runs, an audit or an alignment.

No network: a content security policy forbids any; styles, script and data are in the file. The
page can be read without the script, which adds the theme button and values under the pointer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken._version import __version__
from xtoken.errors import UsageError, XTokenError
from xtoken.report import results, sections
from xtoken.report.alignment import Block
from xtoken.report.audit_html import alignment_section, audit_html, audit_section
from xtoken.report.audit_ranking import ranking_html
from xtoken.report.markup import alignment_blocks, html, section
from xtoken.report.run_data import RunData, load_run, short_name
from xtoken.report.terminal import headline

if TYPE_CHECKING:
    from xtoken.audit import AuditReport, Ranking

RunLike = RunData | str | Path

_NAVIGATION = {
    "differences": "What differs",
    "evaluation": "Evaluation",
    "curves": "Curves",
    "time": "Time",
    "audit": "Audit",
    "alignment": "Alignment",
    "samples": "Samples",
    "settings": "Settings",
}


def write_html(runs: RunLike | Sequence[RunLike], out: str | Path) -> Path:
    """Write the page of one run or several to `out` and return its path.

    `runs`: run folders or `RunData`.

    Raises:
        UsageError: a folder is no run folder, no run is given, or `out` is a folder.
        XTokenError: `out` can't be written.
    """
    listed = [runs] if isinstance(runs, RunData | str | Path) else list(runs)
    return write_page(run_page([r if isinstance(r, RunData) else load_run(r) for r in listed]), out)


def write_page(text: str, out: str | Path) -> Path:
    """Write a finished page, whole or not at all, and return its path.

    Raises:
        UsageError: `out` is a folder.
        XTokenError: `out` can't be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(
            f"{out} is a folder; give a file for the page, such as {out / 'report.html'}."
        )
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise XTokenError(
            f"The page could not be written to {out}: {error.strerror or error}."
        ) from None
    return out


def run_page(runs: Sequence[RunData]) -> str:
    """Return the page of one run or several as HTML text; raises UsageError for none."""
    if not runs:
        raise UsageError("No run was given; expected at least one run folder.")
    runs = _distinct_names(runs)
    tables = results.merged_evaluations(runs)
    parts = {
        "differences": sections.differences_section(runs),
        "evaluation": results.evaluation_section(tables),
        "curves": sections.curves_section(runs),
        "time": sections.time_section(runs),
        "audit": audit_section([audit for run in runs for audit in run.audits]),
        "alignment": alignment_section(runs),
        "samples": sections.samples_section(runs),
        "settings": sections.settings_section(runs),
    }
    if len(runs) == 1:
        title = runs[0].name
        lead = f"{headline(runs[0])}. {results.outcome(runs[0])}".strip()
        about = sections.run_facts(runs[0])
    else:
        title = f"{len(runs)} runs compared"
        lead = ""
        about = ""
    intro = f'{_heading(runs)}<p class="lead">{html(lead)}</p>{about}'
    if len(runs) > 1:
        said = "".join(
            f"<dt>{html(run.name)}</dt><dd>{html(f'{headline(run)}. {results.outcome(run)}')}</dd>"
            for run in runs
        )
        intro = f'<h1>{html(title)}</h1><dl class="runs">{said}</dl>'
    top = results.summary_section(tables, sections.notes_card(runs))
    body = top + "".join(parts.values()) + sections.embedded_data(runs)
    links = [(name, label) for name, label in _NAVIGATION.items() if parts[name]]
    return page(title, intro, body, links)


def audit_page(
    reports: Iterable[AuditReport | Mapping[str, Any]], *, ranking: Ranking | None = None
) -> str:
    """Return the page of one audit, or of several teachers' audits, as HTML text.

    `reports`: audits, or their `to_dict()` form as read from a file. `ranking`: of the same audits,
    for a table of the teachers on top. Raises UsageError for no audit.
    """
    data = [r if isinstance(r, Mapping) else r.to_dict() for r in reports]
    if not data:
        raise UsageError("No audit was given; expected at least one.")
    names = [
        f"{short_name(d['student']['name'])} and {short_name(d['teacher']['name'])}" for d in data
    ]
    title = names[0] if len(names) == 1 else f"{len(names)} pairs of tokenizers"
    body = "".join(
        section(f"pair-{i}", name if len(data) > 1 else "Verdict", audit_html(d))
        for i, (name, d) in enumerate(zip(names, data, strict=True))
    )
    if ranking is not None:
        title = f"{len(data)} teachers for {short_name(ranking.student)}"
        body = section("ranking", "Teachers side by side", ranking_html(ranking)) + body
    intro = (
        f'<p class="eyebrow">xtoken audit</p><h1>{html(title)}</h1><p class="lead">What matches '
        f"between the tokenizers, byte for byte, and which loss that asks for.</p>"
    )
    links = [(f"pair-{i}", name) for i, name in enumerate(names)] if len(data) > 1 else []
    if ranking is not None:
        names = [short_name(d["teacher"]["name"]) for d in data]
        links = [("ranking", "Ranking"), *((f"pair-{i}", n) for i, n in enumerate(names))]
    return page(title, intro, body, links)


def alignment_page(items: Sequence[Block], *, student: str, teacher: str, summary: str = "") -> str:
    """Return the page of one aligned text as HTML text.

    `items` come from `blocks`; `student` and `teacher` are the tokenizers' names, `summary` is the
    sentence under the heading.
    """
    title = f"{short_name(student)} and {short_name(teacher)}, aligned"
    intro = (
        f'<p class="eyebrow">xtoken align</p><h1>{html(title)}</h1>'
        f'<p class="lead">{html(summary)}</p>'
    )
    key = (
        '<p class="sides">Student above teacher. Orange: one student token, several of the '
        "teacher's. Green: several of the student's, one teacher token. Purple: several on both "
        "sides. Dotted: in no chunk.</p>"
    )
    body = f'<div class="card">{key}{alignment_blocks(items)}</div>'
    return page(title, intro, section("chunks", "Chunks", body), [])


def page(title: str, intro: str, body: str, links: Sequence[tuple[str, str]]) -> str:
    """Return a whole page around `body`."""
    room = files("xtoken.report")
    css = room.joinpath("page.css").read_text(encoding="utf-8")
    script = room.joinpath("page.js").read_text(encoding="utf-8")
    items = "".join(f'<li><a href="#{name}">{html(label)}</a></li>' for name, label in links)
    navigation = f'<nav aria-label="Sections"><ul>{items}</ul></nav>'
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
        f'<meta name="generator" content="xtoken {__version__}">'
        f'<link rel="icon" href="data:,"><title>{html(title)}</title>'
        f"<style>{css}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<div class="top{"" if links else " bare"}"><div class="wrap">'
        f'<a class="brand" href="#main">xtoken</a>{navigation}'
        '<button class="theme" type="button" hidden>System</button></div></div>'
        f'<main id="main" class="wrap"><header class="intro">{intro}</header>{body}'
        f"<footer>Made by xtoken {__version__} on {html(made)}. This file needs nothing else: it "
        f"loads nothing from the network.</footer></main><script>{script}</script></body></html>\n"
    )


def _heading(runs: Sequence[RunData]) -> str:
    run = runs[0]
    if not run.teachers:
        return f"<h1>{html(run.name)}</h1>"
    teachers = " + ".join(run.teachers)
    return (
        f'<p class="eyebrow">Run {html(run.name)}</p><h1>{html(run.student)} '
        f'<span class="arrow" aria-label="learns from">&larr;</span> {html(teachers)}</h1>'
    )


def _distinct_names(runs: Sequence[RunData]) -> list[RunData]:
    """Lengthen equal names by their parent folders, so that a legend tells runs apart."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            resolved = run.folder.resolve()
            run.name = f"{resolved.parent.name}/{resolved.name}"
    return list(runs)
