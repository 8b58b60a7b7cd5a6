"""All strategies one after the other in the ranks of one torchrun: losses, state and resume of each, as JSON on stdout.

`python -m torch.distributed.run --standalone --nproc-per-node N -m tests.runner.ranks MODEL`; N = 1 is the reference.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from finetune_api.job.method import Method
from finetune_api.job.training import Training
from finetune_api.stages import TrainPlan
from finetune_runner.data.row_file import RowFile, write_row_file
from finetune_runner.training import compilation, memory_saving
from finetune_runner.training.compilation import Blocks, compiled_passes
from finetune_runner.training.distributed import World
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.loading import load_base, load_tokenizer, new_adapter, saved_names
from finetune_runner.training.objectives.base import Batch, Objective, Start
from finetune_runner.training.objectives.making import make_objective
from finetune_runner.training.objectives.sft import SupervisedFineTuning
from finetune_runner.training.one_copy import reads_base
from finetune_runner.training.optimizer import trainable
from finetune_runner.training.optimizer_files import write_optimizer
from finetune_runner.training.order import micro_batches
from finetune_runner.training.probe import find, longest_micro_batch
from finetune_runner.training.run import Rows
from finetune_runner.training.strategies import new_engine
from finetune_runner.training.strategies.base import Engine, Setup
from tests.runner.preferences import judged, pairs, preference_world

STEPS, BATCH = 4, 8
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp, compiled": {"strategy": "ddp", "torch_compile": True},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, checkpointing": {"strategy": "fsdp", "gradient_checkpointing": True},
    "zero2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero3": {"strategy": "deepspeed", "zero_stage": 3},
    "zero3, checkpointing": {"strategy": "deepspeed", "zero_stage": 3, "gradient_checkpointing": True},
    "zero3, offload": {"strategy": "deepspeed", "zero_stage": 3, "offload": "parameters"},
    "qlora ddp": {"strategy": "ddp", "method": "qlora"},
    "qlora fsdp": {"strategy": "fsdp", "method": "qlora"},
    "qlora zero3": {"strategy": "deepspeed", "zero_stage": 3, "method": "qlora"},
    "dora fsdp": {"strategy": "fsdp"},
    "dora zero3": {"strategy": "deepspeed", "zero_stage": 3},
    "dpo fsdp": {"strategy": "fsdp"},
    "dpo zero3": {"strategy": "deepspeed", "zero_stage": 3},
    "kto fsdp": {"strategy": "fsdp"},
    "kto zero3": {"strategy": "deepspeed", "zero_stage": 3},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "single": {},
    "qlora single": {"method": "qlora"},
    "dora single": {},
    "dpo single": {},
    "kto single": {},
}
CROSSED = {"fsdp": "ddp", "zero2": "fsdp", "zero3": "ddp", "zero3, offload": "zero2"}
"""Cases that also go on from what another one saved."""
PREFERENCES = {"dpo": pairs, "kto": judged}


def _rows() -> list[tuple[list[int], list[int]]]:
    chance = random.Random(0)
    rows = []
    for _ in range(STEPS * BATCH):
        ids = [chance.randrange(5, 390) for _ in range(chance.randint(8, 40))]
        rows.append((ids, [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]))
    return rows


def _objective(case: str, model: Path) -> Objective:
    """The objective of a case, over 32 training examples; reference log-probabilities are kept nowhere before."""
    kind = case.split()[0]
    if kind not in PREFERENCES:
        rows = _rows()
        return SupervisedFineTuning(rows, rows[:5], 0)
    # A storage for each rank: only the main one writes, and a second claim would fence it off.
    folder = Path(tempfile.mkdtemp())
    context = preference_world(folder, model, kind, PREFERENCES[kind]).context("train")
    write_row_file(folder / "train", PREFERENCES[kind](STEPS * BATCH, 3))
    write_row_file(folder / "validation", PREFERENCES[kind](5, 4))
    rows_on_disk = Rows(RowFile(folder / "train"), RowFile(folder / "validation"), folder)
    # Each rank encodes for itself here, as the storage is its own too.
    return make_objective(context, load_tokenizer(model), rows_on_disk, torch.device("cpu"), World())


def _engine(
    case: str, model: Path, plan: TrainPlan, world: World, first: int, adapter: dict[str, torch.Tensor] | None
) -> Engine:
    cpu = torch.device("cpu")
    base = load_base(model, plan.method, cpu, plan, reads=reads_base(plan, Method(), world))
    peft = new_adapter(base, Method(rank=8, use_dora=case.startswith("dora")), 0)
    for name, parameter in trainable(peft).items():
        parameter.data = parameter.data.float()
        if adapter is not None:
            parameter.data.copy_(adapter[name])
    assert saved_names(peft).keys() == trainable(peft).keys()
    memory_saving.apply(peft, plan)
    objective = _objective(case, model)
    training = Training(learning_rate=1e-2, global_batch_size=BATCH)
    engine = new_engine(
        Setup(peft, objective, plan, training, cpu, world, first, Horizon(plan.total_steps)), plan.strategy
    )
    start = Start(untouched=adapter is None, fresh=True)
    engine.call(lambda whole: objective.prepare(whole, world, lambda _: None, start))
    if plan.torch_compile:
        engine.model.train()
        compiled_passes(engine, Blocks(engine.model), [objective.collate([0, 1], packed=False)])
    return engine


def _probe(engine: Engine, world: World) -> str:
    """What the probe changes of the plan. It leaves no trace: the losses after it are those of a run without."""
    objective, plan = engine.setup.objective, engine.setup.plan

    def batch_of(size: int) -> Batch:
        return objective.collate(longest_micro_batch([range(STEPS * BATCH)], objective.lengths, size), packed=False)

    return find(engine, plan, world, batch_of).changes


def _train(engine: Engine, world: World, steps: range) -> list[float]:
    objective = engine.setup.objective
    losses = []
    engine.model.train()
    for step in steps:
        examples = list(range(step * BATCH, (step + 1) * BATCH))
        parts = micro_batches(examples, objective.lengths, 2, world.size, world.rank)
        count = sum(objective.counts[index] for index in examples)
        mine = 0.0
        engine.call(lambda model, examples=examples: objective.begin_step(model, examples, world))
        for number, part in enumerate(parts):
            batch = objective.collate(part, packed=False)
            mine += float(engine.backward(batch, 1 / count, last=number == len(parts) - 1))
        engine.step()
        losses.append(world.sum([mine], torch.device("cpu"))[0])
    return losses


def _validation(engine: Engine, world: World) -> float:
    engine.model.eval()
    local = engine.call(lambda model: engine.setup.objective.validation(model, world, lambda _: None))
    loss, count = world.sum([local.loss, local.count], torch.device("cpu"))
    return loss / count


@dataclass
class Halfway:
    """A run after two steps, and its adapter at the end."""

    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]
    end: dict[str, torch.Tensor]


def _facts(
    name: str, model: Path, world: World, changes: dict[str, Any], other: Halfway | None
) -> tuple[dict[str, Any], Halfway]:
    wire: dict[str, Any] = {
        "method": "lora",
        "strategy": "single",
        "nodes": 1,
        "gpus_per_node": 0,
        "total_steps": STEPS,
        "micro_batch_size": BATCH // 2 // world.size,
        "gradient_accumulation": 2,
        "eval_steps": 2,
    }
    plan = TrainPlan(**(wire | changes))
    engine = _engine(name, model, plan, world, 0, None)
    probed = _probe(engine, world) if world.size > 1 else ""
    losses = _train(engine, world, range(2))
    adapter, state = engine.adapter(), engine.optimizer_state()
    write_optimizer(state, Path(tempfile.mkdtemp()), world)  # what a checkpoint does with it
    losses += _train(engine, world, range(2, STEPS))
    after = engine.adapter()
    # A restored state is what the optimiser goes on with: it changes in place.
    half = Halfway(adapter, copy.deepcopy(state), after)
    resumed = _engine(name, model, plan, world, 2, adapter)
    resumed.load_optimizer_state(state)
    _train(resumed, world, range(2, STEPS))
    again = resumed.adapter()
    resumed.load_adapter(adapter)
    # What another strategy saved, whole and by name, is all that any other needs to go on.
    crossed = None
    if other is not None:
        engine_of_other = _engine(name, model, plan, world, 2, other.adapter)
        engine_of_other.load_optimizer_state(copy.deepcopy(other.optimizer))
        _train(engine_of_other, world, range(2, STEPS))
        found = engine_of_other.adapter()
        crossed = max(float((found[n] - tensor).abs().max()) for n, tensor in other.end.items())
    facts = {
        "crossed": crossed,
        "probed": probed,
        "losses": losses,
        "validation": _validation(engine, world),
        "shapes": {name: list(tensor.shape) for name, tensor in after.items()},
        "smallest_lora_B": min(float(t.abs().max()) for name, t in after.items() if "lora_B" in name),
        "resumed_bitwise": all(torch.equal(after[name], again[name]) for name in after),
        "restored_bitwise": all(torch.equal(t, adapter[n]) for n, t in resumed.adapter().items()),
        "dtypes": sorted({str(tensor.dtype) for tensor in after.values()}),
    }
    return facts, half


def main() -> None:
    """Print the facts of every case, or of those that are named."""
    torch.set_num_threads(1)
    compilation.BACKEND = "aot_eager"  # inductor's traces, without a compiler
    world = World.from_environment()
    if world.size > 1:
        distributed.init_process_group("gloo")
    cases = CASES if world.size > 1 else REFERENCES
    facts: dict[str, Any] = {}
    halves: dict[str, Halfway] = {}
    for name, changes in cases.items():
        if name not in (sys.argv[2:] or cases):
            continue
        other = halves.get(CROSSED.get(name, ""))
        facts[name], halves[name] = _facts(name, Path(sys.argv[1]), world, changes, other)
    if world.main:
        print("FACTS " + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
