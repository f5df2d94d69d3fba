"""The output head of a transformers model, so that its logits never have to exist as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xtoken.errors import LossError, XTokenError
from xtoken.losses.chunked_head import Hidden, OutputHead

# Logits of a batch up to this size are better held: a head that several losses and figures go
# through costs more than that memory is worth.
HELD_BYTES = {"cpu": 2**28, "cuda": 2**30}
# What the trial run's logits are scaled to: far enough out that a soft cap (30 to 50 in public
# models) or a scale that was overlooked shows.
TRIAL_SPREAD = 20.0
TRIAL_TOKENS = 4
# Of the largest logit: a whole product against one of rows, in the weights' precision.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 3e-2


class HeadUnreachableError(XTokenError):
    """A model whose logits aren't a linear layer's output that can be repeated outside of it."""


class ModelHead:
    """Runs a model up to its output head and gives hidden states with the head: `Hidden`.

    The model's own forward is run (so wrappers for data parallelism, mixed precision and adapters
    do their work), but its head sees one position only.

    Args:
        model: a causal language model, bare or with PEFT adapters; not yet wrapped.

    Raises:
        HeadUnreachableError: no plain linear head, or a trial run shows that the model does more to
            its logits than its configuration says (scale, soft cap).
    """

    def __init__(self, model: Any) -> None:
        module = model.get_output_embeddings()
        if type(module) is not nn.Linear:
            found = "none" if module is None else f"a {type(module).__name__}"
            raise HeadUnreachableError(f"its output head is {found}, expected a plain linear layer")
        if module.weight.is_meta:
            raise HeadUnreachableError("its weights are offloaded")
        self.module: nn.Linear = module
        config = model.config.get_text_config()
        self.soft_cap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self._try(model)

    def run(self, forward: Callable[[], Any]) -> Hidden:
        """Return the hidden states of every position of `forward()`, a call of the model.

        Rows are flat: row b * S + s. The precision is what autocast has at the head (else the
        weights'); states carry the graph, the head's weights are the model's own parameters.
        """
        states_BSD, dtype = self._states(forward)
        return Hidden(states_BSD.reshape(-1, states_BSD.shape[-1]), self.head, dtype=dtype)

    def worthwhile(self, input_ids: Tensor) -> bool:
        """Whether a batch's logits, in float32, are too large to be held as a whole."""
        weight_VD = self.module.weight
        size = 4 * input_ids.numel() * weight_VD.shape[0]
        return size > HELD_BYTES.get(weight_VD.device.type, HELD_BYTES["cuda"])

    @property
    def head(self) -> OutputHead:
        """The head's parameters as they are now."""
        return OutputHead(self.module.weight, self.module.bias, self.scale, self.soft_cap)

    def _states(self, forward: Callable[[], Any]) -> tuple[Tensor, torch.dtype]:
        found: list[tuple[Tensor, torch.dtype]] = []

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            states_BSD = args[0]
            kind = states_BSD.device.type
            autocast = torch.is_autocast_enabled(kind)
            own = self.module.weight.dtype
            found.append((states_BSD, torch.get_autocast_dtype(kind) if autocast else own))
            # Not none: some models reshape their logits in ways that an empty tensor can't take.
            return (states_BSD[:, :1], *args[1:])

        handle = self.module.register_forward_pre_hook(hook)
        try:
            forward()
        finally:
            handle.remove()
        if len(found) != 1 or found[0][0].dim() != 3:
            raise HeadUnreachableError(
                f"its forward calls the output head {len(found)} times, expected once, on hidden "
                "states [batch, sequence, hidden]"
            )
        return found[0]

    @torch.no_grad()
    def _try(self, model: Any) -> None:
        """Compare the model's logits with this head's on states that give large ones."""
        weight_VD = self.module.weight
        ids = torch.arange(TRIAL_TOKENS, device=weight_VD.device) % weight_VD.shape[0]
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        norm = float(weight_VD[:256].float().norm(dim=1).mean().clamp_min(1e-6))
        generator = torch.Generator().manual_seed(0)
        states_TD = torch.randn(TRIAL_TOKENS, weight_VD.shape[1], generator=generator)
        states_TD *= TRIAL_SPREAD / norm / max(abs(self.scale), 1e-6)
        states_TD = states_TD.to(weight_VD.device, weight_VD.dtype)
        handle = self.module.register_forward_pre_hook(lambda *_: (states_TD[None],))
        training = model.training
        model.eval()
        try:
            logits = model(**inputs, use_cache=False).logits[0]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise HeadUnreachableError(
                f"a trial run of it failed ({str(error).splitlines()[0] if str(error) else error})"
            ) from error
        finally:
            handle.remove()
            model.train(training)
        rows = torch.arange(TRIAL_TOKENS, device=weight_VD.device)
        try:
            head = self.head
        except LossError as error:  # a scale or cap that can't be one
            raise HeadUnreachableError(str(error)) from error
        source = Hidden(states_TD, head, dtype=weight_VD.dtype)
        own = source.open(rows, source.shape[1], keep=False)
        size = float(own.abs().max())
        allowed = TOLERANCE.get(weight_VD.dtype, HALF_TOLERANCE) * size
        if logits.shape != own.shape or not bool(
            ((logits.float() - own.float()).abs() <= allowed).all()
        ):
            raise HeadUnreachableError(
                "its logits are not those of its output head under the scale and soft cap that "
                "its configuration names"
            )
