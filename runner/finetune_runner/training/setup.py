"""Everything a training needs before its first step: the model with its adapter, spread out and proven."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_runner.training.adapter_file import wanted_shapes
from finetune_runner.training.device import deterministic
from finetune_runner.training.guards import (
    first_batch,
    refuse_changed_start,
    refuse_empty_adapter,
    refuse_other_batch,
    refuse_other_loss,
    refuse_seen_neighbours,
    refuse_unlearnable,
)
from finetune_runner.training.judge import Judge
from finetune_runner.training.live_progress import say
from finetune_runner.training.loading import (
    load_base,
    load_tokenizer,
    method_of,
    new_adapter,
    saved_names,
    shards_weights,
)
from finetune_runner.training.objectives.base import Start
from finetune_runner.training.one_copy import reads_base
from finetune_runner.training.optimizer import trainable
from finetune_runner.training.optimizer_files import read_optimizer
from finetune_runner.training.order import example_stream, micro_batches
from finetune_runner.training.probe import Probe, find, longest_micro_batch, shortest_micro_batch
from finetune_runner.training.saving import newest_checkpoint, saved_adapter
from finetune_runner.training.session import Saved
from finetune_runner.training.stopping import goes_on
from finetune_runner.training.trainer import AdapterTrainer, to_device
from finetune_runner.training.warm_start import start_warm

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_runner.training.compilation import Compilation
    from finetune_runner.training.objectives.base import Batch, Objective
    from finetune_runner.training.order import Indices
    from finetune_runner.training.run import Rows
    from finetune_runner.training.session import Session
    from finetune_runner.training.strategies.base import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learner:
    """What learns, and what it learns from."""

    model: Any
    """PEFT's; the engine holds it as the strategy spreads it."""
    engine: Engine
    objective: Objective
    judge: Judge
    trainer: AdapterTrainer
    stream: Indices
    """[steps, examples]: which training examples each optimiser step sees."""
    adapter_keys: dict[str, str]
    """The key in the adapter's file of every trainable parameter."""
    adapter_shapes: dict[str, list[int]]
    """The shape of every tensor of the adapter's file by its key."""
    trainable_parameters: int
    probe: Probe
    """What was found out about the micro-batch."""
    compilation: Compilation


def set_up(session: Session, rows: Rows) -> Learner:
    """Load, resume, spread out, prove. What is resumed goes into the session's state."""
    import torch

    from finetune_runner.model_source import fetch_model

    context, training = session.context, session.training
    refuse_other_batch(session.plan, session.world.size, training.global_batch_size)
    shutil.rmtree(session.folder, ignore_errors=True)
    session.folder.mkdir(parents=True)
    deterministic(training.seed)
    say(session, "loading the model")
    model_path = fetch_model(context).path
    tokenizer = load_tokenizer(model_path, context.task.spec.model.chat_template)
    judge = Judge(context, tokenizer, rows.validation, session.world)
    # Before anything that takes long on one rank of a node only: the ranks agree, and wait for each other.
    resume = _resume(session, session.folder / "resume")
    # What is cut into parts goes to the GPUs part by part: the whole may not fit on one.
    place = torch.device("cpu") if shards_weights(session.plan) else session.device
    method = context.task.spec.method
    reads = reads_base(session.plan, method, session.world)
    base = load_base(model_path, method_of(context.task), place, session.plan, reads=reads)
    model = new_adapter(base, method, training.seed)
    warm = start_warm(context, model, session.folder / "warm-start")
    learner = _spread_out(session, model, tokenizer, rows, judge, resume)
    _prepare_objective(session, learner, tokenizer, rows, Start(untouched=resume is None, fresh=not warm))
    return learner


def _resume(session: Session, folder: Path) -> Path | None:
    """Where the checkpoint to go on from lies, its state in the session; None for a start from the beginning."""
    checkpoint = newest_checkpoint(session, folder)
    session.resumed_from = checkpoint.step if checkpoint is not None else 0
    if checkpoint is not None:
        session.state = checkpoint.state
        session.saved = Saved(checkpoint.step, checkpoint.files)
        log.info("resuming from checkpoint step-%d", checkpoint.step)
    told = dict.fromkeys([*session.state.skipped_checkpoints, *session.store.skipped])
    session.state.skipped_checkpoints = list(told)
    session.horizon.end = session.state.end or session.horizon.end
    return folder if checkpoint is not None else None


def _spread_out(session: Session, model: Any, tokenizer: Any, rows: Rows, judge: Judge, resume: Path | None) -> Learner:
    """Adapter and optimiser as they are in the checkpoint in `resume`, spread out as the strategy does."""
    import torch

    from finetune_runner.training import memory_saving
    from finetune_runner.training.objectives.making import make_objective

    # bf16 adapters without an fp32 master lose their updates at small learning rates.
    for parameter in trainable(model).values():
        parameter.data = parameter.data.to(torch.float32)
    trainable_parameters = sum(p.numel() for p in trainable(model).values())
    adapter_keys, adapter_shapes = saved_names(model), wanted_shapes(model)
    if resume is not None:
        _load_adapter(model, adapter_keys, resume)
    memory_saving.apply(model, session.plan)
    say(session, "encoding the rows")
    objective = make_objective(session.context, tokenizer, rows, session.device, session.world)
    refuse_unlearnable(len(rows.train), "data.train", learnable=any(objective.counts))
    engine = _proven_engine(session, model, objective, rows.folder)
    if resume is not None:
        engine.load_optimizer_state(read_optimizer(resume))
    size = session.training.global_batch_size
    # What has nothing to learn is never drawn: a step of such examples alone would move nothing.
    weights = np.where(np.asarray(objective.counts) > 0, rows.train.weights, 0.0)
    examples = session.horizon.most * size
    stream = example_stream(rows.train.ids, weights, session.training.seed, examples).reshape(-1, size)
    probe = _probe(session, engine, objective, stream)
    session.plan = probe.plan
    compilation = _compilation(session, engine, objective, stream)
    trainer = AdapterTrainer(
        engine,
        objective,
        lambda step: _step_batches(session, objective, stream, step),
        packed=session.plan.packing,
        device=session.device,
        stopwatch=session.stopwatch,
    )
    return Learner(
        model,
        engine,
        objective,
        judge,
        trainer,
        stream,
        adapter_keys,
        adapter_shapes,
        trainable_parameters,
        probe,
        compilation,
    )


def _load_adapter(model: Any, keys: dict[str, str], folder: Path) -> None:
    """Overwrite every adapter weight of the not yet spread out model with the file's."""
    refuse_empty_adapter(wanted_shapes(model), folder)
    tensors = saved_adapter(keys, folder)
    for name, parameter in trainable(model).items():
        parameter.data.copy_(tensors[name])


def _proven_engine(session: Session, model: Any, objective: Objective, folder: Path) -> Engine:
    """The model as its strategy spreads it; one in parts is compared with the whole.

    `folder` is shared by the ranks of a node and new in each attempt.
    """
    import torch

    from finetune_runner.training import reference
    from finetune_runner.training.strategies import new_engine
    from finetune_runner.training.strategies.base import Setup

    plan, device = session.plan, session.device
    shortest = min(range(len(objective.lengths)), key=objective.lengths.__getitem__)
    whole = None
    if shards_weights(plan):
        whole = reference.told_by_reader(
            folder,
            session.world,
            lambda: reference.whole_model_loss(model, objective, shortest, device),
        )
    engine = new_engine(
        Setup(model, objective, plan, session.training, device, session.world, session.state.step, session.horizon),
        plan.strategy,
    )
    if whole is not None:
        batch = {n: t.to(device) for n, t in objective.collate([shortest], packed=False).items()}
        model.eval()
        with torch.no_grad():
            found = float(engine.loss(batch)) / max(1, objective.counts[shortest])
        reference.require_equal(found, whole, session.precision, plan.strategy)
    return engine


def _prepare_objective(session: Session, learner: Learner, tokenizer: Any, rows: Rows, start: Start) -> None:
    """Let the objective ask the model that training starts from, and prove that model and loss are the base's."""
    from finetune_runner.text import encode_example

    say(session, "asking the model before training")
    engine, objective = learner.engine, learner.objective
    engine.call(lambda model: objective.prepare(model, session.world, lambda _: goes_on(session), start))
    if not start.untouched:
        return  # it was proven before it was first saved
    max_length = session.training.max_length
    examples = first_batch(encode_example(tokenizer, row.messages, max_length) for row in rows.validation)
    refuse_unlearnable(len(rows.validation), "data.validation", learnable=bool(examples))
    dora, pad = session.context.task.spec.method.use_dora, tokenizer.pad_token_id
    if start.fresh:
        engine.call(lambda model: refuse_changed_start(model, examples, pad, dora=dora))
    engine.call(lambda model: refuse_other_loss(model, examples, pad, session.precision))
    if session.plan.packing:
        engine.call(lambda model: refuse_seen_neighbours(model, examples, pad, session.precision))


def _probe(session: Session, engine: Engine, objective: Objective, stream: Indices) -> Probe:
    """Find out before the run whether the micro-batch fits."""
    if session.state.ended_by:
        return Probe(session.plan)
    batch_of = _batches(session, objective, stream, longest_micro_batch)
    say(session, "trying the longest batch")
    found = find(engine, session.plan, session.world, batch_of)
    if found.changes:
        log.warning("the longest batch does not fit as planned: %s", found.changes)
    return found


def _batches(
    session: Session, objective: Objective, stream: Indices, pick: Callable[..., list[int]]
) -> Callable[[int], Batch]:
    """The micro-batch of a size that is picked from the steps that are left, on the device."""
    steps = stream[min(session.state.step, len(stream) - 1) :]

    def batch_of(size: int) -> Batch:
        examples = pick((step.tolist() for step in steps), objective.lengths, size)
        return to_device(objective.collate(examples, packed=session.plan.packing), session.device)

    return batch_of


def _compilation(session: Session, engine: Engine, objective: Objective, stream: Indices) -> Compilation:
    """Compile the blocks where the plan says so, with the micro-batch as it will run."""
    from finetune_runner.training.compilation import Compilation, compile_blocks

    if session.state.ended_by:
        return Compilation(False, "no step was left")
    if session.plan.torch_compile:
        say(session, "compiling the blocks")
    size = session.plan.micro_batch_size
    picks = (shortest_micro_batch, longest_micro_batch)
    return compile_blocks(session, engine, lambda: [_batches(session, objective, stream, pick)(size) for pick in picks])


def _step_batches(session: Session, objective: Objective, stream: Indices, step: int) -> tuple[list[list[int]], int]:
    """This rank's micro-batches of a step (from 1), and the count of all examples of the step on all ranks."""
    examples = stream[step - 1].tolist()
    world = session.world
    parts = micro_batches(examples, objective.lengths, session.plan.gradient_accumulation, world.size, world.rank)
    return parts, sum(objective.counts[index] for index in examples)
