"""What dpo and kto share: log-probabilities of whole answers, and those of the model that training started from.

There is no second model: the reference is this model before its first step, asked once and kept in storage. With a
fresh adapter that is the base, with a warm start the published version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.evaluation.fitting import Fitting
from finetune_runner.evaluation.likelihood import IGNORED, Encoded
from finetune_runner.training.adapter_precision import uncast
from finetune_runner.training.encoded_rows import lengths_of
from finetune_runner.training.label_only import label_losses
from finetune_runner.training.objectives.base import Start
from finetune_runner.training.objectives.sft import pad

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.distributed import World

log = logging.getLogger(__name__)

ROWS_PER_BATCH = 8
TOKENS_PER_BATCH = 16_384
"""A longer answer is a batch of its own."""
REFERENCE = "train/reference"
LOG_PROBABILITIES = "log_probabilities"


def sequence_log_probabilities(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows] summed log-probability in nats of each row's labelled tokens, differentiable.

    Args:
        model: as `label_losses` takes it.
        input_ids: [rows, width], padded on the right.
        labels: [rows, width]; -100 outside the answer.
    """
    losses = label_losses(model, input_ids, labels)
    row_of = (labels[:, 1:] != IGNORED).nonzero()[:, 0]
    return -torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add(0, row_of, losses)


@dataclass(frozen=True)
class Scorer:
    """Asks a model for log-probabilities of many answers, each process its share, in fixed batches.

    The arithmetic is that of a training step: with another one the difference to the reference would be noise.
    """

    pad_token_id: int
    device: torch.device
    autocast: bool = False
    """Whether a step computes in bf16 under autocast."""
    lockstep: bool = True
    """Whether the weights are spread over the processes (see `Share`)."""

    def score(
        self, model: Any, examples: Sequence[Encoded], world: World, on_batch: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """[examples] log-probabilities in nats, float64 on the CPU, the same in every process.

        The model is in eval mode meanwhile. Every process makes the same number of forward passes: a sharded model
        needs all of them for each.

        Raises StageError (GPU_OUT_OF_MEMORY) when not even one answer fits.
        """
        training = model.training
        fitting = Fitting("asking for log-probabilities", self.device, splits=not self.lockstep)
        model.eval()
        found = torch.zeros(len(examples), dtype=torch.float64)
        batches = list(_batches(lengths_of(examples)))
        for start in range(0, len(batches), world.size):
            mine = start + world.rank
            indices = batches[min(mine, len(batches) - 1)]
            for part, values in fitting.parts(indices, lambda rows: self._ask(model, [examples[i] for i in rows])):
                if mine < len(batches):
                    found[part] = values
            if on_batch is not None:
                on_batch(mine)
        model.train(training)
        return torch.tensor(world.sum(found.tolist(), self.device), dtype=torch.float64)

    def _ask(self, model: Any, examples: Sequence[Encoded]) -> torch.Tensor:
        inputs = {name: tensor.to(self.device) for name, tensor in pad(examples, self.pad_token_id).items()}
        precision = torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with torch.no_grad(), precision, uncast(model, active=self.autocast):
            return sequence_log_probabilities(model, inputs["input_ids"], inputs["labels"]).double().cpu()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Fixed batches, longest first: the same rows always share a batch, so that repeats are bitwise equal."""
    ordered = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while ordered:
        rows = max(1, min(ROWS_PER_BATCH, TOKENS_PER_BATCH // max(1, lengths[ordered[0]])))
        yield ordered[:rows]
        ordered = ordered[rows:]


class ReferenceStore:
    """Log-probabilities under the reference, in the run's storage: a resumed attempt must not ask a moved model."""

    def __init__(self, context: StageContext, training_digest: str) -> None:
        self._context = context
        self.uri = f"{context.task.run_uri}/{REFERENCE}-{training_digest[:16]}.safetensors"

    def load(self, examples: Sequence[Encoded]) -> torch.Tensor | None:
        """What an earlier attempt kept for exactly these examples; None when there is nothing usable."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if not self._context.storage.exists(self.uri):
            return None
        content = self._context.storage.read_bytes(self.uri)
        head, _, body = content.partition(b"\n")
        try:
            facts = json.loads(head)
            if facts != _facts(examples, body):
                raise ValueError("it is of other examples, or was changed")
            return load(body)[LOG_PROBABILITIES]
        except (ValueError, KeyError, SafetensorError) as error:
            log.warning("%s is not used: %s", self.uri, error)
            return None

    def save(self, examples: Sequence[Encoded], values: torch.Tensor) -> None:
        """Keep them."""
        from safetensors.torch import save

        body = save({LOG_PROBABILITIES: values})
        self._context.fence.check()
        self._context.storage.write_bytes(self.uri, json.dumps(_facts(examples, body)).encode() + b"\n" + body)


def _facts(examples: Sequence[Encoded], body: bytes) -> dict[str, str]:
    asked = hashlib.sha256()
    for ids, labels in examples:
        asked.update(np.array([len(ids), *ids, *labels], dtype=np.int64).tobytes())
    return {"examples": asked.hexdigest(), "sha256": hashlib.sha256(body).hexdigest()}


def reference_log_probabilities(
    scorer: Scorer,
    store: ReferenceStore,
    model: Any,
    examples: Sequence[Encoded],
    world: World,
    on_batch: Callable[[int], None],
    start: Start,
) -> torch.Tensor:
    """[examples] under the model that training starts from: as an earlier attempt kept them, or asked now.

    Raises StageError when they are lost and the model that could be asked again is not at hand.
    """
    kept = store.load(examples) if world.main else None
    kept = world.from_main(None if kept is None else kept.tolist())
    if kept is not None:
        return torch.tensor(kept, dtype=torch.float64)
    if start.untouched:
        values = scorer.score(model, examples, world, on_batch)
    elif start.fresh:
        with model.disable_adapter():
            values = scorer.score(model, examples, world, on_batch)
    else:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{store.uri} is gone: a resumed training cannot ask the version it started from any more",
            hint="nobody may write below runs/; start a new run",
        )
    if world.main:
        store.save(examples, values)
    world.barrier()
    return values
