"""How much memory a run will need, from the models' configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from xtoken.config import RunConfig
from xtoken.config.sections import Lora, Model
from xtoken.errors import ModelNotFoundError
from xtoken.training.student import recomputes_activations

GIB = 2**30
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "4bit": 0.55, "8bit": 1.05}
# Bytes of optimizer state a trained weight; what is not listed is taken for Adam's.
OPTIMIZER_BYTES = {
    "sgd": 0,
    "adafactor": 1,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_32bit": 4,
}
# Blocks of logits, their gradient and what a loss makes of them, either side: about four times
# what the logits of a block may take (`losses.job.HEAD_BYTES`).
HEAD_BLOCK = 1.0 * GIB


@dataclass(frozen=True)
class ModelSize:
    """A model's size without its weights: parameters, head rows, and shape of its layers."""

    parameters: int
    head_rows: int
    layers: int
    hidden: int
    linear_io: int
    dtype: str


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they hold; `total` is what one process needs at the peak, roughly.

    Activations follow the usual count for a decoder layer (34 bytes a token and hidden unit in 16
    bits, twice that in 32, 2 or 4 with recomputation); real use differs by attention and
    fragmentation, so read it as a guide to within a third.
    """

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """Return one line a part, and the total."""
        rows = [*self.parts.items(), ("total", self.total)]
        scale, unit = (GIB, "GiB") if self.total >= GIB else (2**20, "MiB")
        return [f"{name:<28} {size / scale:8.2f} {unit}" for name, size in rows]


def model_size(model: Model) -> ModelSize:
    """Measure a model from its configuration; no weight is read.

    Raises ModelNotFoundError where the configuration can't be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(model.model)
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    name = model.model
    if path.is_file():
        name, options["gguf_file"] = str(path.parent), path.name
    if model.revision is not None:
        options["revision"] = model.revision
    try:
        config = AutoConfig.from_pretrained(name, **options)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(
                config, trust_remote_code=model.trust_remote_code
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelNotFoundError(
            f"the configuration of {model.model} can't be read: {str(error).splitlines()[0]}"
        ) from error
    text = config.get_text_config()
    head = empty.get_output_embeddings()
    linear = [
        module
        for module in empty.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in empty.parameters()),
        head_rows=int(head.weight.shape[0]) if head is not None else int(text.vocab_size),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        linear_io=sum(module.in_features + module.out_features for module in linear),
        dtype=stored if stored in BYTES else "float32",
    )


def estimate(
    config: RunConfig,
    args: TrainingArguments,
    student: ModelSize,
    teachers: list[ModelSize],
    *,
    student_dtype: str,
    teacher_lengths: list[int],
) -> MemoryEstimate:
    """Return the estimate for one process.

    Args:
        config, args: the run.
        student, teachers: the models' sizes.
        student_dtype: precision of the student's weights (`auto`: as stored).
        teacher_lengths: tokens of the longest teacher sequence, for each teacher.
    """
    own = student.dtype if student_dtype == "auto" else student_dtype
    weight = BYTES[config.student.quantization or own]
    trained = _trained(student, config.student.lora)
    train_bytes = 4.0 if config.student.lora is not None else BYTES[own]
    optimizer = str(getattr(args.optim, "value", args.optim))
    rows = args.per_device_train_batch_size * config.data.max_length
    half = args.bf16 or args.fp16 or own != "float32"
    per_unit = (2.0 if recomputes_activations(args) else 34.0) * (1.0 if half else 2.0)
    # Autocast hands logits over in float32; their gradient is as large.
    whole = 2 * rows * student.head_rows * max(BYTES[own], 4.0 * half)
    lora = config.student.lora is not None
    parts = {
        "student weights": student.parameters * weight,
        "gradients": trained * train_bytes,
        "optimizer": trained * OPTIMIZER_BYTES.get(optimizer, 2 * train_bytes),
        "activations": rows * student.hidden * student.layers * per_unit,
        "student logits and gradient": _logits(whole, config.student),
    }
    if whole > HEAD_BLOCK and config.student.chunked_head and BYTES[own] < 4 and not lora:
        # What the head's gradient would lose from block to block is kept beside it.
        parts["student logits and gradient"] += student.head_rows * student.hidden * BYTES[own]
    for index, (size, length) in enumerate(zip(teachers, teacher_lengths, strict=True)):
        teacher = config.teachers[index]
        stored = size.dtype if teacher.dtype == "auto" else teacher.dtype
        name = config.teacher_names()[index]
        parts[f"teacher {name}"] = size.parameters * BYTES[teacher.quantization or stored]
        parts[f"logits of {name}"] = _logits(
            args.per_device_train_batch_size * length * size.head_rows * BYTES[stored], teacher
        )
    return MemoryEstimate(parts)


def _logits(whole: float, model: Model) -> float:
    return min(whole, HEAD_BLOCK) if model.chunked_head else whole


def _trained(student: ModelSize, lora: Lora | None) -> int:
    if lora is None:
        return student.parameters
    # Rank r adds r * (inputs + outputs) weights to a linear layer; a list of modules adds less.
    return lora.r * student.linear_io
