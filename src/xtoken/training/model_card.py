"""README.md of a trained student: what it was made from, how, and the figures of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtoken._version import __version__
from xtoken.config import RunConfig

LOSS_NAMES = {
    "p_kl": "P-KL (X-Token, arXiv 2605.21699)",
    "h_kl": "H-KL (X-Token, arXiv 2605.21699)",
    "gold": "GOLD",
    "uld": "ULD (arXiv 2402.12030)",
    "alm": "ALM (arXiv 2503.20083)",
    "strict": "strict 1:1 (arXiv 2610.08448)",
    "csd": "CSD (arXiv 2610.28895)",
    "bpm": "BPM (arXiv 2607.22334)",
    "path_kl": "Path-KL (xtoken)",
    "direct": "KL on a shared vocabulary",
}
FIGURES = (
    ("eval_bpb", "bits per byte"),
    ("eval_ce", "cross-entropy, nats a token"),
    ("eval_kd", "distillation loss, a chunk"),
    ("eval_agreement", "agreement with the teacher"),
    ("eval_teacher_bpb", "the teacher's bits per byte"),
)


def hub_name(model: str) -> str | None:
    """Return a model's name if it can be one on a hub (`owner/name`), None for local paths."""
    parts = model.split("/")
    looks_so = len(parts) == 2 and all(parts) and not model.startswith((".", "/", "~"))
    return model if looks_so and not Path(model).exists() else None


def model_card(
    config: RunConfig,
    *,
    losses: list[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> str:
    """Return the card's Markdown.

    Args:
        config: the resolved run.
        losses: the kind of loss used with each teacher.
        before, after: evaluation figures (`eval_*`), empty without evaluation data.
        summary: `steps`, `seconds`, `tokens`, ... of the run.
    """
    names = config.teacher_names()
    title = Path(config.output_dir).resolve().name
    lines = [*_header(config), f"# {title}", ""]
    combine = config.combine
    teachers = list(zip(names, config.teachers, losses, strict=True)) if combine.kd else []
    taught = " and ".join(_code(teacher.model) for _, teacher, _ in teachers)
    how = f"distilled from {taught}" if teachers else "trained further, without a teacher,"
    lines += [
        f"{_code(config.student.model)} {how} with xtoken {__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| student | {_code(config.student.model)}{_lora(config)} |",
    ]
    for name, teacher, loss in teachers:
        weight = f", weight {teacher.weight:g}" if len(teachers) > 1 else ""
        lines.append(
            f"| teacher {name} | {_code(teacher.model)}, {LOSS_NAMES.get(loss, loss)}{weight} |"
        )
    data = ", ".join(_code(source.path) for source in config.data.train)
    kd = f"{combine.kd:g} x distillation ({combine.scaling} scaling) + " if combine.kd else ""
    lines += [
        f"| data | {data}, sequences of up to {config.data.max_length} tokens |",
        f"| loss | {kd}{combine.ce:g} x cross-entropy |",
    ]
    for key, label in (("steps", "steps"), ("chunks_seen", "supervised chunks seen")):
        if summary.get(key):
            lines.append(f"| {label} | {summary[key]:,.0f} |")
    lines += ["", *_figures(before, after), *_usage(title)]
    return "\n".join(lines) + "\n"


def _header(config: RunConfig) -> list[str]:
    """The metadata block: only names that a hub can resolve."""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    base = hub_name(config.student.model)
    if base is not None:
        lines.append(f"base_model: {base}")
    datasets = [name for source in config.data.train if (name := hub_name(source.path))]
    if datasets:
        lines += ["datasets:", *(f"- {name}" for name in datasets)]
    return [*lines, "tags:", "- xtoken", "- distillation", "---", ""]


def _code(name: str) -> str:
    return f"`{name if hub_name(name) else Path(name).name}`"


def _lora(config: RunConfig) -> str:
    lora = config.student.lora
    return "" if lora is None else f", LoRA of rank {lora.r} (adapters in `adapter/`, merged here)"


def _figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    rows = [(label, before.get(key), after.get(key)) for key, label in FIGURES if key in after]
    if not rows:
        return []
    lines = ["## On held-out text", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {label} | {_number(old)} | {_number(new)} |" for label, old, new in rows]
    return [*lines, "", "Measured during this run; `run.yaml` holds its settings.", ""]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _usage(title: str) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{title}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
        "```",
    ]
