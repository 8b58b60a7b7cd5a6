"""What must hold before anything is called trained. Each guard ends the run with what it saw and what to do.

They catch what libraries do silently: a frozen base under gradient checkpointing that trains nothing
(transformers#42489), adapters saved empty or as one rank's slice (trl#4416, accelerate#4206). What shards a model is
compared with the whole one in reference.py.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.wording import agreeing, counted
from finetune_runner.errors import StageError, no_number
from finetune_runner.evaluation.likelihood import IGNORED, Encoded, mean_loss, score
from finetune_runner.training.adapter_file import ADAPTER_FILE, misfits

if TYPE_CHECKING:
    import torch

    from finetune_api.stages import TrainPlan

SMALL_BATCH = 4
LOOKED_AT = 1000
"""Encoding all validation rows anew would take minutes where they are many."""
EXACT, ROUNDED = 1e-6, 0.02
"""Relative. B = 0 adds exactly nothing; DoRA divides by a norm and multiplies with it again, in 16 bit."""
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Relative, and absolute for a model that already knows the answers."""
SHOWN = 3


def learned_tokens(example: Encoded) -> int:
    """Labelled tokens that have a token before them."""
    return sum(label != IGNORED for label in example[1][1:])


def first_batch(examples: Iterable[Encoded]) -> list[Encoded]:
    """The few shortest of the first examples with a loss: enough to compare two ways to compute it, on any device."""
    learnable = islice(filter(learned_tokens, examples), LOOKED_AT)
    return heapq.nsmallest(SMALL_BATCH, learnable, key=lambda example: len(example[0]))


def batch_loss(model: Any, examples: Sequence[Encoded], pad_token_id: int) -> float:
    """Token-weighted loss in nats of a few examples, by the model's own logits; it is in eval mode meanwhile."""
    training = model.training
    model.eval()
    loss = mean_loss(score(model, examples, pad_token_id, own_logits=True))
    model.train(training)
    return loss


def refuse_other_batch(plan: TrainPlan, processes: int, examples: int) -> None:
    """The processes that run must make the examples of an optimiser step that was asked for. Raises StageError.

    Args:
        plan: the split of a step.
        processes: that really train.
        examples: training.globalBatchSize.
    """
    each = plan.micro_batch_size * plan.gradient_accumulation
    if each * processes == examples:
        return
    planned = examples / each
    raise StageError(
        ExitCode.INVALID_SPEC,
        f"{counted(processes, '[process|processes]')} would train {each * processes} examples per optimiser "
        f"step, training.globalBatchSize is {examples}: the plan is for {planned:g} of {each} examples each",
        hint=f"set FINETUNE_CPU_PROCESSES to {planned:g}, or leave it out where the plan is for one"
        if planned.is_integer() and not plan.gpus_per_node
        else "start as many processes as the plan has GPUs; a changed globalBatchSize needs a new plan",
    )


def refuse_unlearnable(rows: int, field: str, *, learnable: bool) -> None:
    """Some row must have something to learn: a row of a single token has no next one. Raises StageError (INVALID_DATA).

    Args:
        rows: how many there are.
        field: of the spec that they come from.
        learnable: whether any of them has a labelled token (dpo, kto: an answer).
    """
    if learnable:
        return
    none = agreeing(rows, f"[the only row has no|none of the {rows} rows has a]")
    what = f"{none} labelled token within training.maxLength" if rows else "no rows"
    raise StageError(
        ExitCode.INVALID_DATA,
        f"{field}: {what}",
        hint="raise training.maxLength, or give rows with longer answers" if rows else f"raise {field}",
    )


def refuse_no_number(loss: float) -> None:
    """A base model whose loss is no number cannot be trained. Raises StageError (MODEL_UNUSABLE)."""
    if not math.isfinite(loss):
        raise no_number(f"the loss of the base model is {loss} before anything was trained")


def refuse_changed_start(model: Any, examples: Sequence[Encoded], pad_token_id: int, *, dora: bool) -> None:
    """A fresh adapter must not change the base: loss at step 0 with it and without. Raises StageError."""
    with_it = batch_loss(model, examples, pad_token_id)
    with model.disable_adapter():
        without = batch_loss(model, examples, pad_token_id)
    refuse_no_number(without)
    if math.isclose(with_it, without, rel_tol=ROUNDED if dora else EXACT):
        return
    raise StageError(
        ExitCode.INTERNAL,
        f"the fresh adapter changes the base model: loss {with_it:.6g} at step 0, {without:.6g} without it",
        hint="report this with the base model's name; nothing was trained",
    )


def refuse_other_loss(model: Any, examples: Sequence[Encoded], pad_token_id: int, precision: str) -> None:
    """The loss that is trained on, of the labelled positions only, must be that of the model's own logits.

    A model may scale its head's output in a way that label_only.py does not know. The model is in eval mode meanwhile.

    Raises StageError (MODEL_UNUSABLE) with both.
    """
    import torch

    from finetune_runner.training.label_only import label_losses
    from finetune_runner.training.objectives.sft import pad

    own = batch_loss(model, examples, pad_token_id)
    refuse_no_number(own)
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        batch = {name: tensor.to(device) for name, tensor in pad(examples, pad_token_id).items()}
        trained = float(label_losses(model, **batch).double().mean())
    model.train(training)
    tolerance = LOSS_TOLERANCE[precision]
    if math.isclose(trained, own, rel_tol=tolerance, abs_tol=tolerance):
        return
    architecture = type(model.get_base_model()).__name__
    raise StageError(
        ExitCode.MODEL_UNUSABLE,
        f"training would minimise another loss than {architecture} has: {trained:.6g} from its head's output, "
        f"{own:.6g} from its own logits; nothing was trained",
        hint="this architecture changes its logits in a way this version does not know; use another model and report "
        "this one",
    )


def refuse_seen_neighbours(model: Any, examples: Sequence[Encoded], pad_token_id: int, precision: str) -> None:
    """Examples that share a row must have the losses that they have alone. The model is in eval mode meanwhile.

    Architectures that make their mask without the positions (Falcon in transformers 5.23) let them see each other. An
    example behind its own copy shows that best.

    Raises StageError (INVALID_SPEC) with both.
    """
    import torch

    from finetune_runner.training.label_only import label_losses
    from finetune_runner.training.objectives.sft import flatten, pad

    examples = [*examples[:1], *examples]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        alone, packed = (
            label_losses(model, **{name: tensor.to(device) for name, tensor in batch.items()}).double()
            for batch in (pad(examples, pad_token_id), flatten(examples))
        )
    model.train(training)
    own, off = float(alone.mean()), float((packed - alone).abs().mean())
    if off <= LOSS_TOLERANCE[precision] * max(1.0, own):
        return
    raise StageError(
        ExitCode.INVALID_SPEC,
        f"training.packing: {type(model.get_base_model()).__name__} lets packed examples see each other: their tokens' "
        f"losses are off by {off:.3g} on average, {float(packed.mean()):.6g} packed and {own:.6g} alone; nothing was "
        "trained",
        hint="set training.packing: disabled",
    )


class FirstStep:
    """Whether every lora_B moved in the first optimiser step. `remember` before it, `refuse_unmoved` after it.

    A lora_B that got no gradient never will: its module takes no part in the loss, or the graph is cut before it.
    """

    def __init__(self) -> None:
        self._before: dict[str, torch.Tensor] = {}

    def remember(self, adapter: Mapping[str, torch.Tensor]) -> None:
        """Take the adapter's whole weights by name, on the host."""
        self._before = {name: tensor.clone() for name, tensor in adapter.items() if "lora_B" in name}

    def refuse_unmoved(self, adapter: Mapping[str, torch.Tensor]) -> None:
        """Compare with the weights after the step. Raises StageError naming those that did not move."""
        import torch

        still = [name for name, before in self._before.items() if torch.equal(before, adapter[name])]
        total = len(self._before)
        self._before = {}
        if not still:
            return
        names = ", ".join(name.removeprefix("base_model.model.") for name in still[:SHOWN])
        some = f"{len(still)} of {total} adapter matrices do" if len(still) < total else "no adapter matrix does"
        raise StageError(
            ExitCode.INVALID_SPEC if len(still) < total else ExitCode.INTERNAL,
            f"{some} not learn: the first step left lora_B unchanged in {names}"
            if len(still) < total
            else "nothing is trained: the first step left every lora_B as it was",
            hint="name the modules that take no part in the loss in method.excludeModules"
            if len(still) < total
            else "set training.gradientCheckpointing: disabled and report this with the base model's name",
            evidence=", ".join(still)[:500],
        )


def refuse_empty_adapter(wanted: Mapping[str, Sequence[int]], folder: Path) -> None:
    """What was saved must be this model's adapter, whole, and change something. Raises StageError saying what is not.

    Args:
        wanted: shape of every tensor of the adapter by its key in the file (`wanted_shapes`).
        folder: with adapter_model.safetensors as it was read back from storage.
    """
    from safetensors.torch import load_file

    problem = misfits(wanted, folder)
    if problem:
        raise StageError(
            ExitCode.INTERNAL,
            "the kept adapter was not saved whole",
            hint="report this; the checkpoint before it may be whole",
            evidence=f"{ADAPTER_FILE} {problem}"[:500],
        )
    up = {name: tensor for name, tensor in load_file(str(folder / ADAPTER_FILE)).items() if "lora_B" in name}
    empty = [name for name, tensor in up.items() if not bool(tensor.count_nonzero())]
    wrong = [name for name, tensor in up.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise StageError(
            ExitCode.INTERNAL, "the kept adapter holds values that are no numbers", evidence=", ".join(wrong)[:500]
        )
    if empty:
        raise StageError(
            ExitCode.INTERNAL,
            "the kept adapter changes nothing: every lora_B is zero"
            if len(empty) == len(up)
            else f"the kept adapter was not saved whole: {len(empty)} of {len(up)} lora_B are zero",
            hint="report this; the checkpoint before it may be whole",
            evidence=", ".join(empty)[:500],
        )
