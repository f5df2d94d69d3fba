"""`transformers.Trainer` with a distillation objective divided by global counts.

Overridden: how a window of micro-batches is counted, the loss, evaluation, logging, and how a
checkpoint reaches the disk. Everything else (DDP, FSDP, PEFT, trackers, schedules, resuming the
data order and random states) is the Trainer's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import TrainingArguments

from xtoken.errors import LossError, TrainingError
from xtoken.output_head import HeadUnreachableError, ModelHead
from xtoken.training import saving
from xtoken.training.batches import (
    Collator,
    IndexedCollator,
    IndexedStream,
    indexed,
    position_in_epoch,
    repeated_positions,
)
from xtoken.training.callbacks import Finisher, MetricsFile, ProgressReport, TrainingInterrupted
from xtoken.training.checkpoints import RunState, clear_staging, find_checkpoint, resolve_checkpoint
from xtoken.training.combine import Combine
from xtoken.training.counts import Counts, drop_examples, local_counts
from xtoken.training.evaluate import evaluation_loader, evaluation_loss, run_objective, with_kd
from xtoken.training.figures import StepFigures, figures_due
from xtoken.training.loss_weights import LossWeights
from xtoken.training.objective import (
    Objective,
    Parts,
    frozen_rng,
    not_finite,
    refuse_silent_teachers,
)
from xtoken.training.ranks import Ranks
from xtoken.training.saving import ADAPTER_FOLDER
from xtoken.training.window import StepLoss


class XTokenTrainer(Trainer):
    """Trains a student on cross-entropy and one distillation term for each teacher.

    Args:
        model: the student (a causal language model, or a PEFT model around one).
        args: any `TrainingArguments`; columns are never removed by name, and a loss that isn't
            finite stops the run instead of being left out of the average.
        objective: the teachers, their losses and weights.
        data_collator: list of examples -> batch, as `xtoken.data.PairCollator` makes it.
        combine: weights and scaling of the two parts.
        train_dataset, eval_dataset: datasets of such examples.
        callbacks: further callbacks.
        progress: "bar" (a live bar), "lines" (plain lines), "none", or "auto" (a bar on a
            terminal, lines elsewhere).
        chunked_head: form the student's logits in blocks and drop them, where its output head can
            be reached; `head_note` says why if it can't.
        **kwargs: whatever else `transformers.Trainer` takes.
    """

    # `compute_loss` divides by counts over the whole accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        data_collator: Collator,
        combine: Combine | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
        progress: str = "auto",
        chunked_head: bool = True,
        **kwargs: Any,
    ) -> None:
        self._settle(args)
        self.objective = objective
        self.combine = combine or Combine()
        self.finisher = Finisher()
        super().__init__(
            model=model,
            args=args,
            data_collator=IndexedCollator(data_collator),
            train_dataset=None if train_dataset is None else indexed(train_dataset),
            eval_dataset=eval_dataset,
            callbacks=[MetricsFile(), ProgressReport(progress), self.finisher, *callbacks],
            **kwargs,
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        # What says the same as `loss_is_scaled_for_ga` to versions that don't know it.
        self.model_accepts_loss_kwargs = True
        self._refuse_split_sequences()
        self.ranks = Ranks(self.accelerator, self.get_tp_size())
        if self.ranks.count > 1 and isinstance(self.train_dataset, IndexedStream):
            raise TrainingError(
                "a dataset that can only be read in order can't be shared between processes; give "
                "one with a length, or train in one process"
            )
        self.loss_weights = LossWeights(objective, self.args.device)
        if self.loss_weights and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise TrainingError(
                "a loss with weights of its own can't be trained under FSDP or DeepSpeed yet; use "
                "DDP or one process, or a loss without"
            )
        self.head_note: str | None = None
        if chunked_head:
            self._reach_head()
        self.step_loss = StepLoss(self.combine, objective.weights, self.ranks.sum)
        self._window_rows: list[int] = []
        self.figures = StepFigures(self.args.device)
        self.chunks_seen = [0.0] * len(objective.teachers)

    @staticmethod
    def _settle(args: TrainingArguments) -> None:
        """Set what the objective needs, whatever the user's arguments say."""
        args.remove_unused_columns = False
        args.label_names = ["labels"]
        args.logging_nan_inf_filter = False
        if args.n_gpu > 1:
            # DataParallel would hand each GPU a slice of a batch whose rows are numbered flat.
            args._n_gpu = 1

    def _reach_head(self) -> None:
        """Let the objective form the student's logits in blocks, or note why it can't."""
        try:
            if not self.objective.takes_rows:
                raise HeadUnreachableError("a loss of the objective takes whole logits only")
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise HeadUnreachableError(
                    "under FSDP or DeepSpeed its weights are only whole inside the forward"
                )
            if self.args.fp16:
                raise HeadUnreachableError("a block's gradient would underflow in fp16 (use bf16)")
            if self.args.torch_compile:
                raise HeadUnreachableError("a compiled forward can't be stopped before the head")
            self.objective.head = ModelHead(self.model)
        except HeadUnreachableError as error:
            self.head_note = str(error)

    def _refuse_split_sequences(self) -> None:
        for name, size in (("context", self.get_cp_size()), ("sequence", self.get_sp_size())):
            if size > 1:
                raise TrainingError(
                    f"{name} parallelism of size {size} cuts sequences between ranks, so a chunk's "
                    "rows would lie on several; use data parallelism (DDP, FSDP) instead"
                )

    # ---- One step ------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Take the step's micro-batches; count tokens and chunks over them and all ranks."""
        self.figures.clock.enter("data")
        batches = [
            self._without_repeats(batch, position)
            for position, batch in enumerate(itertools.islice(epoch_iterator, num_batches))
        ]
        local = local_counts(batches, len(self.objective.teachers), self.objective.count_chunks)
        tokens, *chunks = self.ranks.sum(local).tolist()
        counts = Counts(tokens, tuple(chunks))
        self.step_loss.open(batches, counts)
        self.chunks_seen = [a + b for a, b in zip(self.chunks_seen, chunks, strict=True)]
        self.figures.note_batches(batches, counts, self.objective.names)
        self.figures.clock.enter("other")
        return batches, counts

    def _without_repeats(self, batch: dict[str, Any], position: int) -> dict[str, Any]:
        """Leave out the examples that `accelerate` repeats at an epoch's end to even out ranks."""
        args, dataset = self.args, self.train_dataset
        by_position = hasattr(dataset, "__len__") and not args.accelerator_config.split_batches
        if self.ranks.count == 1 or not by_position:
            return batch
        repeated_B = repeated_positions(
            position_in_epoch(
                self.state.global_step,
                position,
                batches=-(-len(dataset) // (self._train_batch_size * self.ranks.count)),
                accumulate=args.gradient_accumulation_steps,
            ),
            batch["input_ids"].shape[0],
            batch_size=self._train_batch_size,
            rank=self.ranks.index,
            ranks=self.ranks.count,
            length=len(dataset),
        )
        return drop_examples(batch, ~repeated_B) if bool(repeated_B.any()) else batch

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run one micro-batch forward and backward; the first may measure the window before."""
        if self.step_loss.must_measure():
            self._measure(model)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.figures.clock.enter("other")
        if self.step_loss.window.complete:
            scale = self.step_loss.close()
            if scale is not None:
                self.figures.sums.add("scale", scale)
        return loss

    @torch.no_grad()
    def _measure(self, model: nn.Module) -> None:
        """Run the window forward only, with the random states that the real pass will see."""

        def run(batch: dict[str, Any]) -> Parts:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                return self._parts(model, inputs)

        model.train()
        with frozen_rng(self.args.device):
            self.step_loss.measure(run)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss, times the ranks that average it."""
        figures = figures_due(self.state.global_step + 1, self.state, self.args)
        parts = self._parts(
            model,
            inputs,
            weights=self.step_loss.known_weights(),
            # Without weight, the teachers are only asked what is logged of them.
            with_teachers=self.combine.kd > 0 or figures,
            figures=figures,
            backward_clock=True,
        )
        self._window_rows += inputs["indices"].tolist()
        self.figures.sums.merge(parts.sums)
        loss = self.step_loss.loss(parts) * self.ranks.count
        return (loss, None) if return_outputs else loss

    def _parts(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> Parts:
        """Run the objective on a micro-batch; a failure names the step and the examples."""
        try:
            parts = self.objective(model, inputs, clock=self.figures.clock, **options)
        except LossError as error:
            raise TrainingError(f"{self._place(inputs)}: {error}") from error
        if problem := not_finite(parts, self.objective):
            raise TrainingError(
                f"{self._place(inputs)}: {problem}. {self._saved_so_far()} Look at these examples, "
                "lower training.learning_rate, or use bf16 rather than fp16"
            )
        return parts

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Under fp16 an overflow is normal: the loss scaler skips the step.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        rows, self._window_rows = ", ".join(map(str, self._window_rows)), []
        if not scaled and not bool(torch.isfinite(torch.as_tensor(norm))):
            raise TrainingError(
                f"step {self.state.global_step + 1}, training examples {rows} (counted from 0): "
                f"the gradient is not finite although the loss is. {self._saved_so_far()} Lower "
                "training.learning_rate, or train in bf16 or float32"
            )
        return norm

    def _place(self, inputs: dict[str, Any]) -> str:
        """Return which step and which examples (positions in the training data) these are."""
        rows = ", ".join(str(row) for row in inputs["indices"].tolist())
        return f"step {self.state.global_step + 1}, training examples {rows} (counted from 0)"

    def _saved_so_far(self) -> str:
        path = find_checkpoint(self.args.output_dir).path
        return f"Nothing was overwritten{f'; the last checkpoint is {path}' if path else ''}."

    # ---- Logging -------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.figures.clock.enter(None)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of the steps since the last log, over all ranks."""
        if "learning_rate" in logs and "loss" in logs:
            step = self.state.global_step
            logs = {**logs, **self.figures.take(step, self.objective, self.ranks)}
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer, with a group for the losses' own weights."""
        known = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not known:
            self.loss_weights.add_to(optimizer)
        return optimizer

    # ---- Evaluation ----------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return this rank's share of the evaluation data, each example on exactly one rank."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise TrainingError("evaluation needs an eval_dataset; give data.eval in the run file")
        return evaluation_loader(
            dataset,
            self.data_collator,
            batch_size=self.args.eval_batch_size,
            rank=self.ranks.index,
            ranks=self.ranks.count,
            workers=self.args.dataloader_num_workers,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the objective's figures on the data: loss, ce, kd, agreement, bpb, ..."""

        def after_batch() -> None:
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        self.callback_handler.eval_dataloader = dataloader
        sums = run_objective(
            self._evaluated_model(),
            dataloader,
            self.objective,
            prepare=self._prepare_inputs,
            after_batch=after_batch,
        )
        means = with_kd(self.ranks.means(sums), self.objective)
        means["loss"] = evaluation_loss(means, self.combine)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in means.items()},
            num_samples=self.num_examples(dataloader),
        )

    def _evaluated_model(self) -> nn.Module:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return self.model_wrapped
        if not self.accelerator._models and not self.is_in_train:
            # Not trained yet: this puts mixed precision around the forward.
            return self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model

    # ---- Training and checkpoints ---------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` takes the last complete checkpoint.

        Raises:
            TrainingError: the checkpoint can't be used, the loss is not finite, no chunk was
                ever supervised, or the disk is full.
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
        """
        if self.accelerator.is_main_process and Path(self.args.output_dir).is_dir():
            clear_staging(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self.step_loss.lagged.value = None
        self.chunks_seen = [0.0] * len(self.objective.teachers)
        if checkpoint is not None:
            state = RunState.load(checkpoint)
            self.step_loss.lagged.value = state.lagged_scale
            self.chunks_seen = state.chunks_seen or self.chunks_seen
            self.loss_weights.load(checkpoint)
            self.args.eval_on_start = False
        with self.finisher.watching(self):
            output = super().train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs
            )
        if self.finisher.interrupted:
            raise TrainingInterrupted(self.state.global_step, self.args.output_dir)
        return output

    def refuse_without_support(self) -> None:
        """Raise TrainingError if a teacher that counts has had no supervised chunk so far."""
        if self.combine.kd:
            refuse_silent_teachers(self.objective, self.chunks_seen)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student; adapters that would go to the run's folder go to `adapter` in it.

        The folder itself holds the merged model there, and a model directory with both would
        load as adapters on top of the base.
        """
        folder = output_dir or self.args.output_dir
        if Path(folder) == Path(self.args.output_dir) and hasattr(self.model, "peft_config"):
            folder = str(Path(folder) / ADAPTER_FOLDER)
        super().save_model(folder, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keep the run's own card where there is one; otherwise the Trainer's."""
        if self.card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            (Path(self.args.output_dir) / "README.md").write_text(self.card, encoding="utf-8")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        saving.save_checkpoint(self, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with saving.full_disk_is_an_error(output_dir or self.args.output_dir):
            super()._save(output_dir, state_dict)
