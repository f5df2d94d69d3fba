"""The sections of a run file but `loss`, and the run file itself."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from xtoken.config.base import AtLeastOne, NotNegative, Positive, Section, Share, Text
from xtoken.config.losses import LossConfig, PathKL

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=2)]


class Lora(Section):
    """Train low-rank adapters instead of the student's own weights (needs peft)."""

    r: AtLeastOne = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None

    @field_validator("target_modules", mode="before")
    @classmethod
    def _target_modules(cls, value: Any) -> Any:
        if isinstance(value, str) or _is_texts(value):
            return value
        raise PydanticCustomError("xtoken", "expected all-linear, or a list of module names")


class Model(Section):
    """A model: a hub name, a local directory or a .gguf file, and how to load it."""

    model: Text
    tokenizer: Text | None = None
    revision: Text | None = None
    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    attn_implementation: Text | None = None
    trust_remote_code: bool = False
    chunked_head: bool = True


class Student(Model):
    """The model that is trained."""

    lora: Lora | None = None


class Teacher(Model):
    """A model that is learned from.

    `name` is what logs call it (default: the last part of `model`); `loss` and `projection` (a
    file) stand in for the run's own.
    """

    name: Text | None = None
    weight: NotNegative = 1.0
    loss: LossConfig | None = None
    projection: Text | None = None


class Source(Section):
    """One source of records: a file, a folder or a `datasets` name; a set's name and split."""

    path: Text
    name: Text | None = None
    split: Text = "train"


def _as_sources(value: Any) -> Any:
    """Let `train: a.jsonl` and `train: {path: ...}` stand for lists of one."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str | dict | Source) for item in items):
        raise PydanticCustomError(
            "xtoken", "expected a path or name, {path, name, split}, or a list of these"
        )
    return [{"path": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[list[Source], BeforeValidator(_as_sources)]
COLUMNS_OF: dict[str, tuple[str, ...]] = {
    "text": ("text_column",),
    "prompt_completion": ("prompt_column", "completion_column"),
    "messages": ("messages_column", "supervise"),
}


class Data(Section):
    """What is read, and how it is cut. Lengths are in tokens, `eval_split` is a share."""

    train: Sources
    eval: Sources | None = None
    eval_split: Fraction | None = None
    format: Literal["auto", "text", "prompt_completion", "messages"] = "auto"
    text_column: Text = "text"
    prompt_column: Text = "prompt"
    completion_column: Text = "completion"
    messages_column: Text = "messages"
    max_length: Length = 1024
    teacher_max_length: Length | None = None
    packing: bool = False
    supervise: Literal["assistant", "all"] = "assistant"
    max_examples: AtLeastOne | None = None
    encoding: Text = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise PydanticCustomError(
                "xtoken", "expected an encoding that Python knows, such as utf-8 or cp1252"
            ) from None
        return value

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        if self.format == "auto":
            return {}
        return {
            column: f"has no effect with format: {self.format}; remove it, or set format: {kind}"
            for kind, columns in COLUMNS_OF.items()
            if kind != self.format
            for column in columns
        }


class ProjectionSettings(Section):
    """W: a file, or the rules by which it is built."""

    path: Text | None = None
    max_pieces: AtLeastOne = 4
    beta: Positive = 0.9
    gamma: Share = 0.1
    reverse: bool = False
    rule: Literal["multi_token", "longest_prefix"] = "multi_token"

    def rules(self) -> dict[str, Any]:
        """Return the keyword arguments of `xtoken.Projection.build`."""
        return self.model_dump(exclude={"path"})

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        if self.path is None:
            return {}
        return dict.fromkeys(
            self.rules(),
            f"has no effect: the projection is read from {self.path}; remove it, or remove path",
        )


class CombineSettings(Section):
    """How losses add up: distillation against cross-entropy, and teacher against teacher.

    `teachers`: `sum` of all, `average_logits` (one vocabulary), or the `best` for each sample.
    `teacher_weights`: `static` (the teachers' own), or redistributed on each sample by the
    teachers' `ce`, `entropy` or `max_prob`; `best` chooses by it (default `ce`).
    `log_vocab_normalization`: divide each teacher's loss by the log of its vocabulary's size.
    """

    kd: NotNegative = 1.0
    ce: NotNegative = 1.0
    scaling: Literal["fixed", "dynamic", "dynamic_lagged"] = "fixed"
    teachers: Literal["sum", "average_logits", "best"] = "sum"
    teacher_weights: Literal["static", "ce", "entropy", "max_prob"] | None = None
    log_vocab_normalization: bool = False

    @property
    def criterion(self) -> Literal["static", "ce", "entropy", "max_prob"]:
        """`teacher_weights` with its default filled in."""
        default: Literal["static", "ce"] = "ce" if self.teachers == "best" else "static"
        return self.teacher_weights or default


class RunConfig(Section):
    """A run file: everything that `xtoken train` does, with defaults filled in.

    Paths are relative to the current directory, not to the file. `training` holds fields of
    `transformers.TrainingArguments`; those that are not given have xtoken's defaults (see
    `xtoken.config.training_keys.DEFAULTS`), then transformers' own.
    """

    student: Student
    teachers: Annotated[list[Teacher], Field(min_length=1)]
    data: Data
    projection: ProjectionSettings = ProjectionSettings()
    loss: LossConfig = PathKL()
    combine: CombineSettings = CombineSettings()
    training: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    output_dir: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @classmethod
    def parse(cls, data: dict[str, Any]) -> RunConfig:
        """Make a run from plain values, as a run file holds them; raises ConfigError."""
        from xtoken.config.load import parse_run

        return parse_run(data)

    def loss_of(self, teacher: int) -> LossConfig:
        """Return the loss of a teacher: its own, or the run's."""
        own = self.teachers[teacher].loss
        return self.loss if own is None else own

    def teacher_names(self) -> list[str]:
        """Return one distinct name a teacher, for logs: its `name`, else its model's last part."""
        names: list[str] = []
        for teacher in self.teachers:
            base = teacher.name or Path(teacher.model).name.removesuffix(".gguf") or "teacher"
            name, count = base, 1
            while name in names:
                count += 1
                name = f"{base}-{count}"
            names.append(name)
        return names

    def training_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `transformers.TrainingArguments`: defaults included."""
        from xtoken.config.training_keys import with_defaults

        evaluates = self.data.eval is not None or self.data.eval_split is not None
        arguments = with_defaults(self.training, evaluates=evaluates)
        return {"output_dir": self.output_dir, "seed": self.seed, **arguments}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with all defaults filled in; `parse` gives back an equal run."""
        from xtoken.config.load import resolved

        return resolved(self)

    def dump_yaml(self, path: str | Path) -> None:
        """Write the resolved run as a run file; it appears whole or not at all."""
        from xtoken.config.load import write_run

        write_run(self, path)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
