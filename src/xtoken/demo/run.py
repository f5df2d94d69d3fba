"""The demonstration from start to page: audit, warm-up, two trainings, measurements.

Both students start from the same weights and see the same passages in the same order; one learns
from the next token alone, the other from the teacher too. Every figure is measured in the run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtoken.config import RunConfig
from xtoken.demo import assets
from xtoken.demo.pairs import PAIRS, DemoPair, Say
from xtoken.demo.teacher_cache import RememberingModel
from xtoken.errors import UsageError
from xtoken.evaluation import EvaluationTable, save_evaluation

# The first passages train the student's tokenizer and warm it up; the compared trainings begin
# after them, and the held-out passages are the last ones.
WARM_UP_TEXTS = 8000
WARM_UP_LENGTH = 128
# Held-out passages whose beginnings the models go on from, for the page.
SAMPLES = 3


@dataclass(frozen=True)
class DemoResult:
    """Where the demonstration left its files, and the table it measured."""

    table: EvaluationTable
    page: Path
    distilled: Path
    baseline: Path
    seconds: float


def run_demo(
    pair_name: str,
    output: Path,
    *,
    say: Say,
    show: Callable[[EvaluationTable], None],
    seed: int = 0,
    progress: str = "auto",
) -> DemoResult:
    """Run a pair of `PAIRS`; `say` gets sentences, `show` the table at the end.

    Raises:
        UsageError: an unknown pair, or the demo's packages are not installed.
    """
    if pair_name not in PAIRS:
        raise UsageError(f"Unknown pair {pair_name!r}; expected one of {', '.join(PAIRS)}.")
    began = time.monotonic()
    pair = PAIRS[pair_name]
    folder = output / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    say(pair.about)
    texts = assets.passages(pair.name)
    held_out = texts[-pair.held_out :]
    train_file = assets.write_text(
        folder / "train.jsonl", texts[WARM_UP_TEXTS : WARM_UP_TEXTS + pair.passages]
    )
    teacher = pair.teacher(folder, say)
    start = pair.student(folder, texts[:WARM_UP_TEXTS], seed, say)

    verdict = _audit(start, teacher, texts[:50]).verdict
    say(f"The audit's verdict: loss.kind={verdict.loss}. {verdict.reason}")
    if pair.warm_up_steps:
        start = warm_up(pair, folder, start, teacher, texts[:WARM_UP_TEXTS], seed, say, progress)

    say("Training on the next token alone (the baseline)")
    baseline = _train(
        run_config(pair, folder / "cross-entropy", start, teacher, train_file, seed, kd=0.0),
        progress,
    )
    say(f"Distilling with {pair.loss['kind']}")
    distilled = _train(
        run_config(pair, folder / "distilled", start, teacher, train_file, seed), progress
    )

    say(f"Measuring on {len(held_out)} held-out passages")
    students = {"before": start, "cross_entropy_only": baseline, "after": distilled}
    table = _measure(students, teacher, held_out, pair)
    save_evaluation(distilled, [table])
    say("Letting each model go on from a few held-out beginnings")
    _save_samples(distilled, students | {"teacher": teacher}, held_out)
    from xtoken.report import write_html

    page = write_html([distilled, baseline], folder / "report.html")
    show(table)
    return DemoResult(table, page, distilled, baseline, time.monotonic() - began)


def run_config(
    pair: DemoPair,
    output_dir: Path,
    student: Path,
    teacher: Path,
    train: Path,
    seed: int,
    **combine: float,
) -> RunConfig:
    """Return the run file of one training of a pair; `combine` stands in for the pair's own."""
    return RunConfig.parse(
        {
            "student": {"model": str(student)},
            "teachers": [{"model": str(teacher), "dtype": "float32"}],
            "data": {"train": str(train), "max_length": pair.max_length},
            "loss": pair.loss,
            "combine": combine or pair.combine,
            "training": {
                "max_steps": pair.steps,
                "per_device_train_batch_size": pair.batch_size,
                "learning_rate": pair.learning_rate,
                "warmup_steps": max(1, pair.steps // 10),
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
                "report_to": "none",
            },
            "output_dir": str(output_dir),
            "seed": seed,
        }
    )


def _train(config: RunConfig, progress: str) -> Path:
    from xtoken.training import train

    shutil.rmtree(config.output_dir, ignore_errors=True)
    train(config, progress=progress)
    return Path(config.output_dir)


def warm_up(
    pair: DemoPair,
    folder: Path,
    student: Path,
    teacher: Path,
    texts: list[str],
    seed: int,
    say: Say,
    progress: str,
) -> Path:
    """Give a fresh student a start: plain language modelling on other passages."""
    say(f"Warming the fresh student up ({pair.warm_up_steps} steps of plain language modelling)")
    # A passage has some 170 tokens; a few more than are needed, so that none is seen twice.
    needed = pair.warm_up_steps * pair.batch_size * WARM_UP_LENGTH // 170 + 100
    file = assets.write_text(folder / "warm-up.jsonl", texts[:needed])
    config = run_config(pair, folder / "start", student, teacher, file, seed, kd=0.0)
    data = config.to_dict()
    data["data"] |= {"max_length": WARM_UP_LENGTH, "packing": True}
    data["training"] |= {
        "max_steps": pair.warm_up_steps,
        "learning_rate": 2e-3,
        # Not annealed: both trainings go on from here with a schedule of their own.
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 30,
        "logging_steps": 20,
    }
    return _train(RunConfig.parse(data), progress)


def _audit(student: Path, teacher: Path, texts: list[str]) -> Any:
    from xtoken.audit import audit
    from xtoken.vocab import Vocabulary

    return audit(
        Vocabulary.from_pretrained(student), Vocabulary.from_pretrained(teacher), texts=texts
    )


def _measure(
    students: dict[str, Path], teacher: Path, texts: list[str], pair: DemoPair
) -> EvaluationTable:
    """Bits per byte, agreement and KL of each student; the teacher reads every passage once."""
    from xtoken.evaluation import compare
    from xtoken.models import load_causal_lm
    from xtoken.vocab import Vocabulary

    teacher_vocab = Vocabulary.from_pretrained(teacher)
    reader = RememberingModel(load_causal_lm(str(teacher), dtype="float32"))
    columns: dict[str, dict[str, float]] = {}
    for name, path in students.items():
        result = compare(
            load_causal_lm(str(path), dtype="float32"),
            Vocabulary.from_pretrained(path),
            reader,
            teacher_vocab,
            texts,
            max_length=512,
        )
        columns[name] = {
            "bits_per_byte": result.student_bpb,
            "agreement": result.agreement,
            "kl_per_chunk": result.kl_per_chunk,
        }
    columns["teacher"] = {"bits_per_byte": result.teacher_bpb}
    note = (
        f"{len(texts)} passages of Wikipedia that no student saw; {result.chunks:,} chunks, "
        f"{result.student.bytes:,} bytes. Both trained students saw the same "
        f"{pair.passages:,} passages in the same order from the same start."
    )
    return EvaluationTable.from_columns("held-out Wikipedia", columns, note)


def _save_samples(folder: Path, models: dict[str, Path], texts: list[str]) -> None:
    """Write what each model says after the first held-out passages' beginnings, greedily."""
    from xtoken.evaluation.samples import first_prompts, generate, samples_by_prompt, save_samples
    from xtoken.models import load_causal_lm
    from xtoken.vocab import Vocabulary

    prompts = first_prompts(texts, SAMPLES)
    outputs = {
        name: list(
            generate(
                load_causal_lm(str(path), dtype="float32"),
                Vocabulary.from_pretrained(path),
                prompts,
            )
        )
        for name, path in models.items()
    }
    save_samples(folder, samples_by_prompt(prompts, outputs))
