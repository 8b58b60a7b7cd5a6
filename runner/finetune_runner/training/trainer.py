"""TRL's SFTTrainer with a fixed order of examples, and a callback that watches every step.

Imported only inside the train stage: trl takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from finetune_api.job.training import Training
from finetune_api.stages import TrainPlan
from finetune_runner.evaluation.likelihood import Encoded


class _FixedBatches(Sampler[list[int]]):
    """Yields the given micro-batches, in order."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class AdapterTrainer(SFTTrainer):
    """SFTTrainer whose data order, optimiser and schedule are given, and which remembers the loss of the step."""

    def __init__(self, *, batches: Sequence[list[int]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._batches = batches
        self._step_loss = torch.zeros((), device=self.args.device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The remaining micro-batches of this rank, each example list exactly as planned."""
        rows: Any = self.train_dataset
        return DataLoader(rows, batch_sampler=_FixedBatches(self._batches), collate_fn=self.data_collator)

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """One micro-batch; its share of the step's loss is kept for `take_step_loss`."""
        loss: torch.Tensor = super().training_step(*arguments, **keywords)  # type: ignore[no-untyped-call]
        self._step_loss += loss
        return loss

    def take_step_loss(self) -> torch.Tensor:
        """Loss of the optimiser step that just ended, on this rank; starts counting anew."""
        loss, self._step_loss = self._step_loss, torch.zeros_like(self._step_loss)
        return loss


class StepWatch(TrainerCallback):
    """Calls `before(step)` and `after(step)` with steps counted over all attempts; `after` returns whether to stop."""

    def __init__(self, first_step: int, before: Callable[[int], None], after: Callable[[int], bool]) -> None:
        self._first_step = first_step
        self._before = before
        self._after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Before the forward passes of an optimiser step."""
        self._before(self._first_step + state.global_step)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """After an optimiser step."""
        if self._after(self._first_step + state.global_step):
            control.should_training_stop = True
        return control


def trainer_settings(plan: TrainPlan, training: Training, steps: int, device: torch.device, folder: Path) -> SFTConfig:
    """SFTConfig with everything off that this project does itself: evaluation, logging, saving, order, schedule.

    TRL's defaults would cut at 1,024 tokens and compute in bf16 with gradient checkpointing.
    """
    on_gpu = device.type == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation,
        max_steps=steps,
        max_grad_norm=training.max_grad_norm,
        max_length=None,
        packing=False,
        padding_free=plan.packing,
        bf16=on_gpu and plan.precision == "bf16",
        gradient_checkpointing=plan.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if plan.gradient_checkpointing else None,
        use_cpu=not on_gpu,
        seed=training.seed,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def as_dataset(examples: Sequence[Encoded]) -> Dataset:
    """Pre-tokenised rows in the columns SFTTrainer uses as they are."""
    return Dataset.from_dict({"input_ids": [ids for ids, _ in examples], "labels": [labels for _, labels in examples]})
