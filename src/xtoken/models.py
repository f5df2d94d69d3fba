"""Loading causal language models: hub names, local directories and GGUF files.

Weights come from safetensors or GGUF files only: a pickled checkpoint runs code when it is opened,
so it is refused. Nothing here imports torch or transformers before a model is asked for.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from xtoken._model_files import find_model, first_line
from xtoken.errors import ModelNotFoundError, UsageError, XTokenError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]


def load_causal_lm(
    name_or_dir_or_gguf: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, every weight accounted for.

    Args:
        name_or_dir_or_gguf: a hub name, a directory that `save_pretrained` wrote (also one that
            holds a PEFT adapter, with its base model), or a .gguf file, which is dequantised.
        dtype: of the weights; `auto` takes the checkpoint's.
        quantization: load the weights in 4 (NF4) or 8 bits through bitsandbytes.
        attn_implementation: as transformers names them, such as `sdpa` or `flash_attention_2`.
        revision: of a hub name: a branch, tag or commit.
        trust_remote_code: run modelling code that comes with the model. Only for code you read.
        device: where to put the model; None leaves it where transformers loads it (the CPU, or a
            GPU for quantised weights).

    Raises:
        ModelNotFoundError: no such directory, file or hub name; a directory without a model.
        UsageError: a setting that this model or machine can't have (bitsandbytes is missing, ...).
        XTokenError: pickled weights only, a truncated file, weights missing from a checkpoint.
    """
    name = os.fspath(name_or_dir_or_gguf)
    _check_choice("dtype", dtype, get_args(Dtype))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "use_safetensors": True}
    source, gguf = find_model(name)
    if gguf is not None:
        options |= _gguf_options(gguf, quantization)
    elif quantization is not None:
        options |= _quantization_options(quantization, dtype, device)
    if revision is not None:
        options["revision"] = revision
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model = _load(source, name, dtype, options)
    if device is not None and quantization is None:
        model.to(device)
    return model


def output_head_rows(model: PreTrainedModel) -> int:
    """Return the rows of the model's output head: the width of its logits, padded rows included."""
    head = model.get_output_embeddings()
    # A quantised head packs its weight, so its shape says nothing; `out_features` always does.
    rows = getattr(head, "out_features", None)
    if rows is None and getattr(head, "weight", None) is not None:
        rows = head.weight.shape[0]
    return int(rows if rows is not None else model.config.get_text_config().vocab_size)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most positions that the model was made for, None where its config has no limit."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    return None if length is None else int(length)


# ------------------------------------------------------------------ options


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(allowed)}.")


def _gguf_options(path: Path, quantization: str | None) -> dict[str, Any]:
    if quantization is not None:
        raise UsageError(
            f"quantization is {quantization!r}, but {path} is a GGUF file, which is quantised "
            "already and loaded dequantised. Leave quantization out."
        )
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            f"Reading {path} needs the gguf package; install it with `pip install xtoken[gguf]`."
        )
    from transformers import GgufConfig

    # Left in blocks, the weights could neither be trained nor saved.
    return {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}


def _quantization_options(
    quantization: str, dtype: Dtype, device: str | torch.device | None
) -> dict[str, Any]:
    _check_choice("quantization", quantization, get_args(Quantization))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"quantization is {quantization!r}, which needs the bitsandbytes package; install it "
            "with `pip install bitsandbytes`, or load the model with dtype: bfloat16."
        )
    import torch
    from transformers import BitsAndBytesConfig

    if device is None:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    return {"quantization_config": config, "device_map": {"": device}}


# ------------------------------------------------------------------ loading


def _load(source: str, name: str, dtype: Dtype, options: dict[str, Any]) -> Any:
    # Without this, transformers asks a hub service to open a pull request with converted weights.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    from transformers import AutoModelForCausalLM

    hub = not Path(source).is_dir()
    if hub:
        cached = _in_cache(source, options)
        if not cached:
            _ask_hub(name, options.get("revision"))
        options = {**options, "local_files_only": cached}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **options
        )
    except XTokenError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise _explain(error, name, hub, options) from error
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise XTokenError(
            f"The checkpoint of {name} lacks {len(missing)} of the model's weights (such as "
            f"{missing[0]}), which would be left random. Save or download the model again."
        )
    return model


def _in_cache(name: str, options: dict[str, Any]) -> bool:
    """Tell whether a hub name can be loaded from the local cache, without asking the hub.

    A machine without a network must not sit through retries for what it has.
    """
    from transformers.utils import cached_file

    for file in ("model.safetensors", "model.safetensors.index.json"):
        try:
            found = cached_file(name, file, revision=options.get("revision"), local_files_only=True)
        except Exception:
            continue
        if found is not None:
            return True
    return False


def _ask_hub(name: str, revision: str | None) -> None:
    """Raise ModelNotFoundError unless the hub knows the name.

    Asks once and fails at once, where a download would retry for half a minute: a mistyped path
    on a machine without a network must not seem to hang.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:
        raise _not_found(name, first_line(error)) from error


def _explain(error: Exception, name: str, hub: bool, options: dict[str, Any]) -> XTokenError:
    line, text = first_line(error), str(error)
    if "use_safetensors=True" in text:
        return XTokenError(
            f"{name} has its weights pickled only; opening such a file can run code, so xtoken "
            "reads safetensors. If you trust it, convert it once and give the new directory: "
            "AutoModelForCausalLM.from_pretrained(name).save_pretrained(folder)."
        )
    if "trust_remote_code" in text:
        return UsageError(
            f"{name} brings modelling code of its own, which is not run unless you say so. Read "
            "it, then set trust_remote_code: true."
        )
    attention = options.get("attn_implementation")
    if attention is not None and (isinstance(error, ImportError) or attention in text):
        return UsageError(
            f"attn_implementation is {attention!r}, which this model or machine can't use: {line} "
            "Leave it out, or use sdpa."
        )
    if "out of memory" in text:
        return XTokenError(
            f"Loading {name} ran out of memory ({line}). Use dtype: bfloat16, quantization: 4bit, "
            "or a smaller model."
        )
    if isinstance(error, ImportError):
        return UsageError(f"Loading {name} needs a package that is not installed: {line}")
    if hub:
        return _not_found(name, line)
    return XTokenError(f"transformers can't load a causal language model from {name}: {line}")


def _not_found(name: str, reason: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{name!r} is neither a local directory nor a model that can be resolved on the hub "
        f"({reason}). Check the name, the network (HF_HUB_OFFLINE is "
        f"{os.environ.get('HF_HUB_OFFLINE', 'not set')}) and, for gated models, your login."
    )
