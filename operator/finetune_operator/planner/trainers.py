"""The same step as another trainer would run it (data/trainers.toml): to compare, and to check against its figures."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from finetune_operator.planner.fit import Demand, training_setup
from finetune_operator.planner.memory.breakdown import Breakdown
from finetune_operator.planner.memory.pools import other_memory
from finetune_operator.planner.memory.training import TrainingSetup


@dataclass(frozen=True)
class Trainer:
    """What another trainer does otherwise."""

    name: str
    about: str
    always: dict[str, Any]
    """Fields of TrainingSetup."""
    quantised: dict[str, Any]
    """Those of 4-bit bases only."""
    mixed_lengths: bool = False
    """Whether its allocator keeps blocks for rows of every length."""


@cache
def known_trainers() -> dict[str, Trainer]:
    """All of them by name."""
    text = files("finetune_operator.planner").joinpath("data/trainers.toml").read_text(encoding="utf-8")
    found = {}
    for name, said in tomllib.loads(text).items():
        aside = ("about", "quantised", "mixed_lengths")
        always = {field: value for field, value in said.items() if field not in aside}
        mixed = said.get("mixed_lengths", False)
        found[name] = Trainer(name, said["about"], always, said.get("quantised", {}), mixed)
    return found


def other_setup(demand: Demand, micro_batch: int, trainer: Trainer) -> TrainingSetup:
    """The setup of a step with that trainer. FSDP cuts adapters too, as it does there; FSDP 2 is torchtune's alone."""
    setup = training_setup(demand, micro_batch)
    changes = trainer.always | (trainer.quantised if setup.quantisation in ("nf4", "nf4-double") else {})
    if trainer.mixed_lengths:
        changes = changes | {"mean_sequence": float(demand.typical_row)}
    if setup.strategy in ("fsdpBase", "fsdp2"):
        changes = changes | {"strategy": "fsdp2" if trainer.name == "torchtune" else "fsdp"}
    return replace(setup, **changes)


def other_step(demand: Demand, micro_batch: int, trainer: Trainer) -> Breakdown:
    """Memory of one GPU at the peak of that step."""
    return other_memory(other_setup(demand, micro_batch, trainer))
