"""The model that is trained: loaded, checked against its tokenizer, given adapters."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from xtoken.config.sections import Lora, Student, Teacher
from xtoken.errors import ConfigError, UsageError
from xtoken.models import load_causal_lm, output_head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from xtoken.teachers import LocalTeacher
    from xtoken.vocab import Vocabulary


def recomputes_activations(args: TrainingArguments) -> bool:
    """Whether activations are recomputed in the backward pass (older names of the setting too)."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(getattr(args, name, False) for name in names)


def student_dtype(student: Student) -> str:
    """Return the precision of the student's weights.

    `auto` means float32 for weights that are trained themselves: in bfloat16 an update of a
    thousandth of a weight is rounded away (mixed precision is `training.bf16`). Under adapters
    the frozen weights keep the checkpoint's precision.
    """
    if student.dtype != "auto":
        return student.dtype
    return "float32" if student.lora is None else "auto"


def load_student(student: Student, vocab: Vocabulary, args: TrainingArguments) -> PreTrainedModel:
    """Load the student for training, with adapters if the run file asks for them.

    Raises:
        VocabularyError: the model's head has fewer rows than the tokenizer has ids.
        ConfigError, UsageError: adapters that don't fit the model, or peft is missing.
    """
    model: Any = load_causal_lm(
        student.model,
        dtype=student_dtype(student),  # type: ignore[arg-type]
        quantization=student.quantization,
        attn_implementation=student.attn_implementation,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
    )
    vocab.with_rows(output_head_rows(model))
    if student.lora is not None:
        model = with_adapters(model, student.lora, quantized=student.quantization is not None)
        if recomputes_activations(args):
            # Recomputed blocks get no gradient otherwise: their inputs come from frozen weights.
            model.enable_input_require_grads()
    elif student.quantization is None:
        model.requires_grad_(True)
    return model


def with_adapters(model: Any, lora: Lora, *, quantized: bool) -> Any:
    """Return the model with trainable low-rank adapters around its frozen weights."""
    require_peft()
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model)
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name})
        raise ConfigError(
            f"student.lora doesn't fit this model: {str(error).splitlines()[0]} Its modules are "
            f"{', '.join(name for name in names if not name.isdecimal())}"
        ) from error


def require_peft() -> None:
    """Raise UsageError if adapters are asked for and peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "student.lora needs the peft package; install it with `pip install xtoken[peft]`, or "
            "remove student.lora to train all weights"
        )


def load_teacher(teacher: Teacher, vocab: Vocabulary, name: str, device: Any) -> LocalTeacher:
    """Load a teacher's model onto the device."""
    from xtoken.teachers import LocalTeacher

    model = load_causal_lm(
        teacher.model,
        dtype=teacher.dtype,
        quantization=teacher.quantization,
        attn_implementation=teacher.attn_implementation,
        revision=teacher.revision,
        trust_remote_code=teacher.trust_remote_code,
    )
    return LocalTeacher(model, vocab, name=name, chunked_head=teacher.chunked_head).to(device)
