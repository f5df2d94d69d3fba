"""The measurements of `xtoken eval` over a line-up of models, and where they are written."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.cli._lineup import Contestant, Lineup
from xtoken.cli._output import doing, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xtoken.evaluation import EvaluationTable
    from xtoken.evaluation.tasks import Tasks

COMPARED = ("agreement", "kl_per_chunk", "kept_mass", "bytes_aligned", "chunks")


class _Held:
    """One loaded model at most: asking for another lets go of it first."""

    def __init__(self, vocabs: Mapping[str, Any], loading: Mapping[str, Any]) -> None:
        self._vocabs, self._loading = vocabs, loading
        self._one: Contestant | None = None
        self._model: Any = None

    def of(self, one: Contestant) -> Any:
        """Return the model, loaded if it isn't the one that is held."""
        if self._one is not one:
            self.drop()
            self._model = one.load(self._vocabs[one.column], **self._loading)
            self._one = one
        return self._model

    def drop(self) -> None:
        """Let go of the model; its memory is free at once, cycles or not."""
        self._one = self._model = None
        gc.collect()


@dataclass
class Measuring:
    """Everything that was asked for; `run` measures, `write` saves, `shown` draws."""

    lineup: Lineup
    files: Sequence[str]
    texts: list[str]
    tasks: Tasks | None
    prompts: list[str]
    by_class: bool
    projection: str | None
    loading: Mapping[str, Any]
    windows: Mapping[str, Any]
    tasks_options: Mapping[str, Any]
    sampling: Mapping[str, Any]
    comparisons: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    bits: dict[str, dict[str, Any]] = field(default_factory=dict)
    task_results: dict[str, dict[str, Any]] = field(default_factory=dict)
    written_texts: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measure every model; one student and one teacher at most are in memory at a time.

        Each teacher is loaded once; the students, which are smaller, once for each teacher that
        they are compared with.
        """
        # Tokenizers first: what is wrong with them shows in seconds, before gigabytes are read.
        vocabs = {one.column: one.vocabulary() for one in self.lineup.all}
        teachers = self.lineup.teachers
        alone = self.tasks is not None or bool(self.prompts) or (self.by_class and self.texts)
        students, others = (_Held(vocabs, self.loading) for _ in range(2))
        for number, teacher in enumerate(teachers if self.texts and teachers else [None]):
            for one in self.lineup.students:
                if teacher is not None:
                    self._compare(one, students.of(one), teacher, others.of(teacher), vocabs)
                if number == 0:
                    self._measure(one, students.of(one), vocabs[one.column])
            if teacher is not None and alone:
                self._measure(teacher, others.of(teacher), vocabs[teacher.column])
        students.drop()
        for teacher in teachers if alone and not self.texts else ():
            self._measure(teacher, others.of(teacher), vocabs[teacher.column])
        return self._result()

    def _compare(
        self, one: Contestant, model: Any, teacher: Contestant, other: Any, vocabs: Any
    ) -> None:
        from xtoken.evaluation import compare
        from xtoken.projection import Projection

        pair = vocabs[one.column], vocabs[teacher.column]
        given = None if self.projection is None else Projection.load(self.projection, *pair)
        with progress(f"Comparing on the text ({one.column})", self._size) as advance:
            found = compare(
                model, pair[0], other, pair[1], self.texts, given, progress=advance, **self.windows
            )
        self.comparisons.setdefault(teacher.column, {})[one.column] = found.to_dict()

    def _measure(self, one: Contestant, model: Any, vocab: Any) -> None:
        if self.texts and (self.by_class or not self.lineup.teachers):
            from xtoken.evaluation import bits_per_byte

            with progress(f"Reading the text ({one.column})", self._size) as advance:
                self.bits[one.column] = bits_per_byte(
                    model,
                    vocab,
                    self.texts,
                    by_class=self.by_class,
                    progress=advance,
                    **self.windows,
                ).to_dict()
        if self.tasks is not None:
            from xtoken.evaluation.tasks import run_tasks

            self.task_results[one.column] = run_tasks(
                model, vocab, self.tasks, **self.tasks_options
            )
            self._save_tasks(one.column)
        if self.prompts:
            from xtoken.evaluation.samples import generate

            with doing(f"Writing samples ({one.column})"):
                self.written_texts[one.column] = list(
                    generate(model, vocab, self.prompts, **self.sampling)
                )

    @property
    def _size(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    def _save_tasks(self, column: str) -> Path | None:
        """Save at once: a model that fails later doesn't take hours of tasks with it."""
        if self.lineup.folder is None:
            return None
        from xtoken.evaluation.tasks import save_results

        path = self.lineup.folder / "lm_eval" / f"{column}.json"
        return save_results(path, self.task_results[column])

    def _result(self) -> dict[str, Any]:
        result: dict[str, Any] = {"models": {one.column: one.name for one in self.lineup.all}}
        if self.texts:
            result |= {"files": list(self.files), "bytes": self._size}
        for key, found in (("comparison", self.comparisons), ("bits_per_byte", self.bits)):
            if found:
                result[key] = found
        if self.task_results:
            from xtoken.evaluation.tables import lm_eval_values

            result["tasks"] = {c: lm_eval_values(r) for c, r in self.task_results.items()}
        if self.prompts:
            result["samples"] = self._samples()
        return result

    def _samples(self) -> list[dict[str, Any]]:
        from xtoken.evaluation.samples import samples_by_prompt

        return samples_by_prompt(self.prompts, self.written_texts)

    def tables(self) -> list[EvaluationTable]:
        """Return the text's tables: one, or one a teacher where there are several."""
        if not self.texts:
            return []
        name = f"{', '.join(self.files)}: {self._size:,} bytes"
        if len(self.comparisons) < 2:
            return [self._table(name, next(iter(self.comparisons), None), with_bits=True)]
        return [
            self._table(f"{name}, {teacher}", teacher, with_bits=i == 0)
            for i, teacher in enumerate(self.comparisons)
        ]

    def _table(self, name: str, teacher: str | None, *, with_bits: bool) -> EvaluationTable:
        from xtoken.audit.classes import sorted_keys
        from xtoken.evaluation import EvaluationTable

        columns: dict[str, dict[str, float]] = {}
        for student, found in self.comparisons.get(teacher or "", {}).items():
            columns[student] = {"bits_per_byte": found["student"]["bits_per_byte"]}
            columns[student] |= {metric: found[metric] for metric in COMPARED}
        if teacher is not None:
            columns[teacher] = {"bits_per_byte": found["teacher"]["bits_per_byte"]}
        for column, measured in self.bits.items() if with_bits else ():
            values = columns.setdefault(column, {})
            values.setdefault("bits_per_byte", measured["bits_per_byte"])
            if teacher is None:
                values |= {metric: measured[metric] for metric in ("bytes", "tokens")}
            classes = measured.get("by_class", {})
            for key in sorted_keys({key: part["bytes"] for key, part in classes.items()}):
                values[f"bits_per_byte/{key}"] = classes[key]["bits_per_byte"]
        note = "each token but a text's first; both models on the same bytes" if teacher else ""
        return EvaluationTable.from_columns(name, columns, note)

    def write(self) -> list[Path]:
        """Write what was measured into the run or output folder, keeping its other tables."""
        folder = self.lineup.folder
        if folder is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "lm_eval" / f"{column}.json" for column in self.task_results]
        made = self.tables()
        if made:
            from xtoken.evaluation import load_evaluation, save_evaluation

            present = (folder / "evaluation.json").exists()
            kept = load_evaluation(folder) if present else []
            names = {table.name for table in made}
            written.append(
                save_evaluation(folder, [*(t for t in kept if t.name not in names), *made])
            )
        if self.prompts:
            from xtoken.evaluation.samples import save_samples

            written.append(save_samples(folder, self._samples()))
        return written

    def shown(self) -> list[RenderableType]:
        """Return what a terminal shows: tables, then samples."""
        from rich.text import Text

        from xtoken.evaluation.tables import results_table
        from xtoken.report import render_table_before_after
        from xtoken.report.frame import heading

        drawn = self.tables()
        if self.task_results:
            drawn.append(results_table(self.task_results))
        parts: list[RenderableType] = [render_table_before_after(table) for table in drawn]
        for sample in self._samples():
            parts += [heading("A sample"), Text(sample["prompt"])]
            for column, text in sample["outputs"].items():
                parts.append(Text(f"  {column}: ", style="dim").append(text.strip(), "not dim"))
        return parts
