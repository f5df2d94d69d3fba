"""What models write after a prompt: greedy or seeded, cut at a number of tokens.

`samples.json` of a run folder:

    [{"prompt": "...", "outputs": {"before": "...", "after": "...", "teacher": "..."}}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xtoken.errors import EvaluationError
from xtoken.evaluation import scoring
from xtoken.evaluation.files import write_whole

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

FILE_NAME = "samples.json"
PROMPT_BYTES = 120
# Stands at the end of what was cut.
CUT = " …"


def first_prompts(texts: Sequence[str], count: int, size: int = PROMPT_BYTES) -> list[str]:
    """Return the beginnings of the first `count` texts: at most `size` bytes, whole words.

    Raises EvaluationError where no text is long enough to be cut.
    """
    prompts: list[str] = []
    for text in texts:
        head = text.encode()[:size].decode("utf-8", "ignore")
        if len(head) < len(text):
            # A word that was cut, and the space before it, would make the next token odd.
            whole = head.rsplit(None, 1)[0] if head.split()[1:] else head
        else:
            whole = head[: len(head) // 2].rsplit(None, 1)[0] if head.split()[2:] else ""
        if whole.strip():
            prompts.append(whole.rstrip())
        if len(prompts) == count:
            return prompts
    if not prompts:
        raise EvaluationError("No text is long enough for a prompt; give a file of --prompts.")
    return prompts


@torch.no_grad()
def generate(
    model: Any,
    vocab: Vocabulary,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield what a model writes after each prompt.

    Args:
        model: a transformers causal language model.
        vocab: its vocabulary.
        prompts: texts; encoded with the beginning that the tokenizer itself gives them.
        max_new_tokens: tokens at most; what is cut ends in an ellipsis.
        temperature: 0 takes the likeliest token, else tokens are drawn.
        seed: of the draws; every prompt starts from it, so their number changes nothing.

    Raises:
        EvaluationError: settings out of range, or logits that are not finite.
    """
    if max_new_tokens < 1 or not 0 <= temperature < float("inf"):
        raise EvaluationError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}; expected at least "
            "1 and a number from 0."
        )
    device = scoring.device_of(model)
    room = scoring.context_limit(model, 1 << 30) - max_new_tokens
    eos, pad = vocab.role_id("eos"), vocab.role_id("pad")
    stops = _stops(model, eos)
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    fill = pad if pad is not None else stops[0] if stops else 0
    devices = [device] if device.type == "cuda" else []
    with scoring.evaluating(model):
        for prompt in prompts:
            ids = scoring.encode_group(vocab, [prompt])[0].ids[-max(room, 1) :]
            if not len(ids):
                raise EvaluationError("A prompt is empty; expected some text.")
            input_ids = torch.tensor(ids[None].astype("int64"), device=device)
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                try:
                    written = model.generate(
                        input_ids=input_ids,
                        attention_mask=torch.ones_like(input_ids),
                        max_new_tokens=max_new_tokens,
                        pad_token_id=fill,
                        **options,
                    )[0, len(ids) :].tolist()
                except RuntimeError as error:
                    if "probability tensor" not in str(error):
                        raise
                    raise EvaluationError(
                        "The model gives probabilities that are not finite; its weights may be "
                        "damaged, or its dtype too narrow (try float32)."
                    ) from None
            ended = bool(written) and written[-1] in stops
            yield _text(vocab, written) + ("" if ended else CUT)


def _stops(model: Any, eos: int | None) -> list[int]:
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return [*listed, *([] if eos is None else [eos])]


def _text(vocab: Vocabulary, ids: Sequence[int]) -> str:
    # Ids of padded rows stand for nothing; a character may be cut at the end.
    real = [i for i in ids if i < len(vocab) and not vocab.is_special[i]]
    return vocab.join_bytes(real).decode("utf-8", "replace").removesuffix("\ufffd")


def samples_by_prompt(
    prompts: Sequence[str], outputs: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return `samples.json`'s content from each column's outputs, in the prompts' order."""
    return [
        {"prompt": prompt, "outputs": {column: texts[i] for column, texts in outputs.items()}}
        for i, prompt in enumerate(prompts)
    ]


def save_samples(folder: str | Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    """Write `samples.json` in a folder, whole or not at all."""
    text = json.dumps(list(samples), indent=1, ensure_ascii=False)
    return write_whole(Path(folder) / FILE_NAME, text + "\n", errors="replace")
