"""Finding and loading a tokenizer by name, directory or GGUF file.

A directory is what `AutoTokenizer` makes of it: some classes (Qwen2, Gemma, GPT-2, Llama, BERT)
rebuild normaliser and pre-tokenizer instead of taking those in `tokenizer.json`, so the file alone
is not the truth. Where the class is the plain one, the file is all there is, and reading it
directly saves the seconds that importing transformers and torch takes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtoken.errors import ModelNotFoundError

ROLE_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "pad",
    "unk_token": "unk",
    "cls_token": "cls",
    "sep_token": "sep",
}
PLAIN_CLASSES = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """A directory's tokenizer, read without transformers."""

    backend: Any
    role_tokens: dict[str, str]
    chat_template: str | None
    has_config: bool


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path} is not readable JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def token_text(value: Any) -> str | None:
    """Return the text of a token as config files write it: a string or {"content": ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the directory's default chat template, if it has one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template") or read_json(folder / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def output_rows(folder: Path) -> int | None:
    """Return the rows of the model's output head: what `config.json` states, or a GGUF's tokens.

    (transformers may add a token or two of its own to a GGUF's, which the model knows nothing of.)
    """
    if folder.is_file() and folder.suffix == ".gguf":
        return _gguf_tokens(folder)
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _gguf_tokens(path: Path) -> int | None:
    try:
        from transformers.integrations.gguf import read_gguf_metadata

        metadata, _ = read_gguf_metadata(str(path))
        tokens = metadata["tokenizer.ggml.tokens"]
    except Exception:
        return None  # loading the tokenizer gives the error that says what is wrong
    return tokens if isinstance(tokens, int) else len(tokens)


def read_plain_directory(folder: Path) -> TokenizerFiles | None:
    """Read a directory whose `tokenizer.json` is exactly what `AutoTokenizer` would give.

    Returns None where transformers has a say: a class that rebuilds the pipeline, a model config
    that picks a class, added tokens or a BOS habit that only `tokenizer_config.json` knows.
    """
    path = folder / "tokenizer.json"
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    config = read_json(folder / "tokenizer_config.json")
    if config.get("tokenizer_class") not in PLAIN_CLASSES:
        return None
    if {"auto_map", "add_bos_token", "add_eos_token"} & config.keys():
        return None

    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelNotFoundError(
            f"{path} is not a tokenizer that the installed `tokenizers` can read: {error}"
        ) from error
    added = {
        token.content: (index, token.special)
        for index, token in backend.get_added_tokens_decoder().items()
    }
    named = {**read_json(folder / "special_tokens_map.json"), **config}
    role_tokens = {
        role: text for key, role in ROLE_KEYS.items() if (text := token_text(named.get(key)))
    }
    decoder = config.get("added_tokens_decoder") or {}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, dict) else extra
    declared = [token_text(value) for value in [*role_tokens.values(), *extra]]
    if any(text not in added or not added[text][1] for text in declared if text):
        return None
    if any(token_text(value) not in added for value in decoder.values()):
        return None
    return TokenizerFiles(
        backend=backend,
        role_tokens=role_tokens,
        chat_template=read_chat_template(folder, config),
        has_config=bool(named),
    )


def looks_local(name: str) -> bool:
    """Tell whether a name that does not exist on disk was meant as a path rather than on a hub."""
    first = name.split("/", 1)[0]
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or (name.count("/") != 1 and "/" in name)
        or name.endswith((".gguf", ".json", ".model", "/"))
        or ("/" in name and Path(first).is_dir())
    )


def load_tokenizer(
    name_or_dir_or_gguf: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load the transformers tokenizer of a directory, a GGUF file or a hub name.

    Raises `ModelNotFoundError` for what isn't there: a path that does not exist (at once, without
    asking a hub), a directory without a tokenizer, a name that can't be resolved.
    """
    name = os.fspath(name_or_dir_or_gguf)
    path = Path(name).expanduser()
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    if path.is_file():
        if path.suffix == ".gguf":
            return _from_gguf(path, options)
        if path.name == "tokenizer.json":
            return load_tokenizer(
                path.parent, revision=revision, trust_remote_code=trust_remote_code
            )
        raise ModelNotFoundError(
            f"{path} is a file, expected a directory with a tokenizer.json, a .gguf file or a hub "
            "name; give the directory that holds it."
        )
    if path.is_dir():
        return _from_directory(path, options)
    if looks_local(name):
        raise ModelNotFoundError(
            f"There is no directory {name!r}; expected a local directory with a tokenizer.json, a "
            ".gguf file or a hub name such as 'owner/model'. Check the path."
        )
    return _from_hub(name, options)


def _auto_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer


def _from_gguf(path: Path, options: dict[str, Any]) -> Any:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelNotFoundError(
            f"Reading {path} needs the `gguf` package; install it with `pip install xtoken[gguf]`."
        ) from error
    try:
        return _auto_tokenizer().from_pretrained(str(path.parent), gguf_file=path.name, **options)
    except Exception as error:
        raise ModelNotFoundError(
            f"transformers can't read a tokenizer from {path}: {_first_line(error)}. "
            "Use a directory with a tokenizer.json for this model instead."
        ) from error


def _from_directory(path: Path, options: dict[str, Any]) -> Any:
    ggufs = sorted(path.glob("*.gguf"))
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        if len(ggufs) == 1:
            return _from_gguf(ggufs[0], options)
        hint = (
            f"it holds {len(ggufs)} .gguf files: give the path of one of them"
            if ggufs
            else "save one there with `tokenizer.save_pretrained(...)`, or give another directory"
        )
        raise ModelNotFoundError(
            f"The directory {str(path)!r} has no tokenizer (expected tokenizer.json, or one of "
            f"{', '.join(TOKENIZER_FILES[1:])}); {hint}."
        )
    try:
        return _auto_tokenizer().from_pretrained(str(path), **options)
    except Exception as error:
        if not (path / "tokenizer.json").is_file():
            raise ModelNotFoundError(
                f"transformers can't load the tokenizer in {str(path)!r}: {_first_line(error)}"
            ) from error
    # Without a config, AutoTokenizer can't tell which class to take; the file still says it all.
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(path))
    except Exception as error:
        raise ModelNotFoundError(
            f"transformers can't load the tokenizer in {str(path)!r}: {_first_line(error)}"
        ) from error


def _from_hub(name: str, options: dict[str, Any]) -> Any:
    try:
        # The cache first: a machine without a network must not sit through retries.
        return _auto_tokenizer().from_pretrained(name, local_files_only=True, **options)
    except Exception:
        pass
    try:
        from huggingface_hub import HfApi

        # Asks once and fails at once, where a download would retry for half a minute.
        HfApi().model_info(name, revision=options.get("revision"), timeout=10)
        return _auto_tokenizer().from_pretrained(name, **options)
    except Exception as error:
        raise ModelNotFoundError(
            f"{name!r} is neither a local directory nor a tokenizer that can be resolved on the "
            f"hub ({_first_line(error)}). Check the name, the network (HF_HUB_OFFLINE is "
            f"{os.environ.get('HF_HUB_OFFLINE', 'not set')}) and, for gated models, your login."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
