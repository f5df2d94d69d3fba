"""Finding a model's files and looking at them before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

from xtoken._tokenizer_files import looks_local
from xtoken.errors import ModelNotFoundError, XTokenError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_model(name: str) -> tuple[str, Path | None]:
    """Return what `from_pretrained` is to be given, and the GGUF file if it is one."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(
                f"{path} is a file; expected a model directory, a .gguf file or a hub name. Give "
                "the directory that holds it."
            )
        return str(path.parent), path
    if path.is_dir():
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            check_weights(path)
            return str(path), None
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return str(path), ggufs[0]
        hint = (
            f"it holds {len(ggufs)} .gguf files: give the path of one of them"
            if ggufs
            else "give a directory that `model.save_pretrained(...)` wrote"
        )
        raise ModelNotFoundError(f"The directory {name!r} holds no model (no config.json); {hint}.")
    if looks_local(name):
        raise ModelNotFoundError(
            f"There is no directory {name!r}; expected a local model directory, a .gguf file or a "
            "hub name such as 'owner/model'. Check the path."
        )
    return name, None


def check_weights(folder: Path) -> None:
    """Refuse a model directory whose weights are pickled, missing or truncated.

    Only headers are read, so this is quick whatever the model's size. Raises XTokenError.
    """
    files = _weight_files(folder)
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise XTokenError(
                f"{folder} holds its weights pickled only ({pickled[0]}); opening such a file can "
                "run code, so xtoken reads safetensors. If you trust it, convert it once: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
            )
        raise ModelNotFoundError(
            f"The directory {str(folder)!r} has no weights (expected model.safetensors); give a "
            "directory that `model.save_pretrained(...)` wrote, or download it again."
        )
    from safetensors import SafetensorError, safe_open

    for file in files:
        if not file.is_file():
            raise XTokenError(
                f"{folder} lacks {file.name}, which its index names; the copy is not complete. "
                "Download or save the model again."
            )
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise XTokenError(
                f"{file} is truncated or damaged ({first_line(error)}). Download or save the "
                "model again."
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise XTokenError(f"{index} is damaged: {error}. Save the model again.") from error
        return [folder / str(name) for name in sorted(names)]
    wanted = [folder / "model.safetensors", folder / "adapter_model.safetensors"]
    return [file for file in wanted if file.is_file()]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
