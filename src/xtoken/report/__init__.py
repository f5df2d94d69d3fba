"""Reports for people: a run, an audit, an alignment, in a terminal or as one HTML page."""

from xtoken.aligned_blocks import Block, blocks, visible
from xtoken.report.alignment import AlignmentView, render_alignment
from xtoken.report.audit_text import render_audit
from xtoken.report.data import report_data
from xtoken.report.evaluation_text import render_table_before_after
from xtoken.report.html import alignment_page, audit_page, run_page, write_html, write_page
from xtoken.report.run_data import RunData, Sample, Series, load_run
from xtoken.report.terminal import report_terminal

__all__ = [
    "AlignmentView",
    "Block",
    "RunData",
    "Sample",
    "Series",
    "alignment_page",
    "audit_page",
    "blocks",
    "load_run",
    "render_alignment",
    "render_audit",
    "render_table_before_after",
    "report_data",
    "report_terminal",
    "run_page",
    "visible",
    "write_html",
    "write_page",
]
