"""The training loop, the same for every strategy: micro-batches forward and backward, then one update."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from finetune_runner.training.adapter_precision import uncast
from finetune_runner.training.timing import Stopwatch

if TYPE_CHECKING:
    from finetune_runner.training.objectives.base import Batch, Objective
    from finetune_runner.training.strategies.base import Engine

MicroBatches = Sequence[Sequence[int]]
PREFETCHED = 4
"""Micro-batches collated ahead: rows are already tokenised, so one thread is far ahead of any forward pass."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; on a GPU without waiting for the copy."""
    if device.type != "cuda":
        return batch
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def backward(engine: Engine, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
    """`Engine.backward` as steps do it: adapters' inputs are left uncast."""
    # Around the backward pass too: what is recomputed there must be computed as before.
    with uncast(engine.model, active=engine.autocasts):
        return engine.backward(batch, scale, last=last)


class Prefetcher:
    """Batches made by a thread while the model computes, in order."""

    def __init__(self, make: Callable[[Sequence[int]], Batch], parts: Iterator[Sequence[int]]) -> None:
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCHED)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(make, parts), name="batches", daemon=True)
        self._thread.start()

    def _fill(self, make: Callable[[Sequence[int]], Batch], parts: Iterator[Sequence[int]]) -> None:
        try:
            for indices in parts:
                if not self._put(make(indices)):
                    return
        except Exception as error:  # noqa: BLE001 - it belongs to whoever takes the batch
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._end.is_set():
            try:
                self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False

    def take(self) -> Batch:
        """The next batch. Raises what making it raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()


class AdapterTrainer:
    """Optimiser steps over a fixed order of examples.

    Args:
        engine: the model as its strategy spreads it.
        objective: makes batches of examples and losses of batches.
        step_batches: this rank's micro-batches of a step, and the count its loss is divided by: that of all examples
            of the step, on all ranks.
        packed: whether the examples of a micro-batch share one row.
        device: of this rank.
        stopwatch: hears where the time goes.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        step_batches: Callable[[int], tuple[MicroBatches, int]],
        *,
        packed: bool,
        device: torch.device,
        stopwatch: Stopwatch,
    ) -> None:
        self.engine = engine
        self._objective = objective
        self._step_batches = step_batches
        self._packed = packed
        self._device = device
        self._stopwatch = stopwatch
        self._step_loss = torch.zeros((), device=device)

    def train(self, steps: range, before: Callable[[int], None], after: Callable[[int], bool]) -> None:
        """Do the steps; `before` and `after` hear their numbers, and training ends where `after` returns True."""
        parts = (part for step in steps for part in self._step_batches(step)[0])
        prefetcher = Prefetcher(lambda indices: self._objective.collate(indices, packed=self._packed), parts)
        try:
            for step in steps:
                before(step)
                micro_batches, count = self._step_batches(step)
                self.step(lambda _: prefetcher.take(), micro_batches, count)
                if after(step):
                    return
        finally:
            prefetcher.close()

    def step(self, take: Callable[[Sequence[int]], Batch], micro_batches: MicroBatches, count: int) -> None:
        """One optimiser step: the mean loss over `count`, which all ranks and micro-batches add up to."""
        watch, engine = self._stopwatch, self.engine
        engine.model.train()
        for number, indices in enumerate(micro_batches, start=1):
            with watch.measure("data"):
                batch = to_device(take(indices), self._device)
            with watch.measure("compute"):
                self._step_loss += backward(engine, batch, 1 / max(1, count), last=number == len(micro_batches))
        with watch.measure("optimizer"):
            engine.step()

    def take_step_loss(self) -> torch.Tensor:
        """This rank's part of the mean loss of the optimiser step that just ended; starts counting anew."""
        loss, self._step_loss = self._step_loss, torch.zeros_like(self._step_loss)
        return loss
