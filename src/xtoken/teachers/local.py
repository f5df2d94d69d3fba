"""A teacher in this process: a causal language model that only reads."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xtoken.errors import UsageError
from xtoken.losses.base import SignalKind
from xtoken.losses.sources import LogitSource, Source
from xtoken.models import context_length, load_causal_lm, output_head_rows
from xtoken.output_head import HeadUnreachableError, ModelHead
from xtoken.vocab import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalTeacher:
    """Dense logits from a model held in memory, in the model's own precision.

    Args:
        model: a causal language model. It is put into evaluation mode and its weights are frozen.
        vocab: its tokenizer's vocabulary; `rows` is set to the height of the model's head.
        name: what logs call the teacher.
        chunked_head: let `rows` give hidden states where the output head can be reached;
            `head_note` says why if it can't.

    Raises:
        VocabularyError: the model's head is too small for the vocabulary.
    """

    kind: SignalKind = "dense"

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: Vocabulary,
        *,
        name: str | None = None,
        chunked_head: bool = True,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocab = vocab.with_rows(output_head_rows(model))
        self.name = name or vocab.name
        self.context_length = context_length(model)
        self.chunked_head = chunked_head
        self.head_note: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir_or_gguf: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> LocalTeacher:
        """Load model and tokenizer; `options` are those of `xtoken.models.load_causal_lm`."""
        source = os.fspath(name_or_dir_or_gguf)
        shared = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        if tokenizer is not None:
            shared.pop("revision", None)  # it names a state of the model's repository
        # The tokenizer first: what is wrong with it shows in seconds, before gigabytes are read.
        vocab = Vocabulary.from_pretrained(source if tokenizer is None else tokenizer, **shared)
        return cls(load_causal_lm(source, **options), vocab, name=name)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.model.device

    @cached_property
    def head(self) -> ModelHead | None:
        """The output head, where it is wanted and can be reached.

        Found when it is first asked for: that runs the model, which should be where it stays.
        """
        if not self.chunked_head:
            return None
        try:
            return ModelHead(self.model)
        except HeadUnreachableError as error:
            self.head_note = str(error)
            return None

    def to(self, device: torch.device | str) -> LocalTeacher:
        """Move the model; quantised models and those spread over devices stay where they are."""
        fixed = getattr(self.model, "hf_device_map", None) or getattr(
            self.model, "is_quantized", False
        )
        if not fixed:
            self.model.to(device)
        return self

    @torch.no_grad()
    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return next-token logits without gradient, on the device of `input_ids`.

        Args:
            input_ids: int64[B, T].
            attention_mask: [B, T], 0 on padding, which may stand on either side.

        Returns:
            float[B, T, U or more] in the model's dtype: row t is the distribution of token t + 1,
            columns past the vocabulary's real size are padding.

        Raises:
            UsageError: sequences longer than the model's positions reach.
        """
        return self._forward(self._inputs(input_ids, attention_mask)).to(input_ids.device)

    @torch.no_grad()
    def rows(self, input_ids: Tensor, attention_mask: Tensor) -> Source:
        """Return the rows of `signal`, flat (b * T + t): in blocks where that can be and pays.

        Raises:
            UsageError: sequences longer than the model's positions reach.
        """
        # The loss runs where the batch is, and a head's weight doesn't travel.
        head = self.head
        here = head is not None and head.module.weight.device == input_ids.device
        if head is None or not here or not head.worthwhile(input_ids):
            logits_BTU = self.signal(input_ids, attention_mask)
            return LogitSource(logits_BTU.reshape(-1, logits_BTU.shape[-1]))
        inputs = self._inputs(input_ids, attention_mask)
        return head.run(lambda: self._forward(inputs))

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        if self.context_length is not None and input_ids.shape[1] > self.context_length:
            raise UsageError(
                f"Teacher {self.name} reads at most {self.context_length} tokens, the batch has "
                f"{input_ids.shape[1]}; lower data.teacher_max_length."
            )
        mask = attention_mask.to(self.device)
        inputs: dict[str, Any] = {"input_ids": input_ids.to(self.device), "attention_mask": mask}
        if mask.shape[1] and not bool(mask[:, 0].all()):
            # Models count positions from the padded start unless told otherwise.
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
        return inputs

    def _forward(self, inputs: dict[str, Any]) -> Tensor:
        # The student's autocast must not decide the teacher's precision.
        with torch.autocast(self.device.type, enabled=False):
            return self.model(**inputs, use_cache=False).logits
