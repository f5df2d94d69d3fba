"""Which models `xtoken eval` measures: one by name, or all of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.errors import UsageError

if TYPE_CHECKING:
    from xtoken.config import RunConfig
    from xtoken.config.sections import Model
    from xtoken.vocab import Vocabulary

RUN_FILE = "run.yaml"


@dataclass(frozen=True)
class Contestant:
    """A model to measure; `column` is its name in tables and files.

    `loading`: what a run file says of how it is loaded, for `load_causal_lm`.
    """

    column: str
    name: str
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)

    def vocabulary(self) -> Vocabulary:
        """Read its vocabulary."""
        from xtoken.cli._output import doing
        from xtoken.vocab import Vocabulary

        source = self.tokenizer or self.name
        with doing(f"Reading the tokenizer of {source}"):
            return Vocabulary.from_pretrained(
                source,
                # A tokenizer of another place has no part in the model's revision.
                revision=None if self.tokenizer else self.revision,
                trust_remote_code=self.trust_remote_code,
            )

    def load(self, vocab: Vocabulary, **options: Any) -> Any:
        """Load the model; refuses the tokenizer of another model.

        `options` go before `loading`.
        """
        from xtoken.cli._output import doing
        from xtoken.models import load_causal_lm, output_head_rows

        with doing(f"Loading {self.name}"):
            model = load_causal_lm(
                self.name,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                **{**self.loading, **options},
            )
        vocab.with_rows(output_head_rows(model))
        return model


@dataclass(frozen=True)
class Lineup:
    """Students (before and after, or one) and teachers; `folder` where results belong."""

    students: list[Contestant]
    teachers: list[Contestant]
    folder: Path | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[Contestant]:
        """Everything that is measured, in the tables' order."""
        return [*self.students, *self.teachers]


def is_run(name: str) -> bool:
    """Tell whether a name is a folder that `xtoken train` wrote to."""
    return (Path(name).expanduser() / RUN_FILE).is_file()


def run_lineup(
    name: str,
    output: Path | None,
    *,
    before: Contestant | None = None,
    teacher: Contestant | None = None,
    trust_remote_code: bool,
) -> Lineup:
    """Line up a run's models: the student before and after, and its teachers.

    `before` and `teacher` stand in for the run's own.
    Raises UsageError for a run without a finished student, ConfigError for a broken run file.
    """
    from xtoken.config import load_run

    folder = Path(name).expanduser()
    config = load_run(folder / RUN_FILE)
    if not (folder / "config.json").is_file():
        found = sorted(folder.glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
        hint = f"give {found[-1]} to measure its newest checkpoint, or " if found else ""
        raise UsageError(
            f"The run {name} has no finished student; {hint}finish it with `xtoken train --resume`."
        )
    student = config.student
    trust = trust_remote_code or student.trust_remote_code
    before = before or Contestant(
        "before", student.model, student.tokenizer, student.revision, trust, _loading(student)
    )
    after = Contestant("after", str(folder), trust_remote_code=trust, loading=_loading(student))
    teachers = [
        Contestant(
            _column(config, i),
            teacher.model,
            teacher.tokenizer,
            teacher.revision,
            trust_remote_code or teacher.trust_remote_code,
            _loading(teacher),
        )
        for i, teacher in enumerate(config.teachers)
    ]
    if teacher is not None:
        teachers = [teacher]
    texts = [] if config.data.eval is None else [source.path for source in config.data.eval]
    return Lineup([before, after], teachers, output or folder, texts)


def _loading(model: Model) -> dict[str, Any]:
    return {
        "dtype": model.dtype,
        "quantization": model.quantization,
        "attn_implementation": model.attn_implementation,
    }


def _column(config: RunConfig, teacher: int) -> str:
    """Name a teacher's column, which is also a file's name."""
    if len(config.teachers) == 1:
        return "teacher"
    return "teacher " + re.sub(r"[^\w.-]+", "-", config.teacher_names()[teacher])
