"""Hyper-parameters that follow from the objective and the optimiser when the job leaves them out. Pure.

They are no defaults of the schema: there every objective would get the same. The planner freezes them in status.plan.

Sources, all of LoRA and AdamW. `sft`: QLoRA, Dettmers et al. 2023 (2e-4, 7B-13B). `dpo`: TRL docs/peft_integration.md
("5.0e-6", ten times the rate of full fine-tuning), alignment-handbook zephyr-7b-beta/dpo/config_qlora.yaml (5e-6, one
epoch). `kto`: TRL examples/scripts/kto.py ("the optimal configuration for KTO will be similar to that of DPO"). Lion:
Chen et al. 2023, section 5 (a rate 3 to 10 times smaller than AdamW's).
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job.method import Method, Objective
from finetune_api.job.training import Optimizer, Training


@dataclass(frozen=True)
class Recipe:
    """What published recipes train an objective with. Rates are AdamW's."""

    learning_rate: float
    lowest_rate: float
    """Below: the rate of full fine-tuning, at which an adapter hardly moves."""
    highest_rate: float
    """Above no recipe of a model from 1B on goes."""
    epochs: float


RECIPES: dict[Objective, Recipe] = {
    "sft": Recipe(learning_rate=2e-4, lowest_rate=1e-5, highest_rate=1e-3, epochs=3.0),
    "dpo": Recipe(learning_rate=5e-6, lowest_rate=5e-7, highest_rate=5e-5, epochs=1.0),
    "kto": Recipe(learning_rate=5e-6, lowest_rate=5e-7, highest_rate=5e-5, epochs=1.0),
}

LION_SHARE = 0.2
"""Of AdamW's rate: between a third and a tenth."""
_LION: frozenset[Optimizer] = frozenset({"lion", "lion_8bit", "paged_lion_8bit"})


def rate_share(optimizer: Optimizer) -> float:
    """What an optimiser's rate is of AdamW's.

    8-bit and paged AdamW take AdamW's own (Dettmers et al. 2022), and so does Adafactor without its own schedule, whose
    steps are normalised alike.
    """
    return LION_SHARE if optimizer in _LION else 1.0


def learning_rate(method: Method, training: Training) -> float:
    """The peak rate in force: the job's, else the recipe's for the objective and the optimiser."""
    if training.learning_rate is not None:
        return training.learning_rate
    # Rounded: 2e-4 x 0.2 is 4e-5, not 4.0000000000000003e-05.
    return float(f"{RECIPES[method.objective].learning_rate * rate_share(training.optimizer):.6g}")


def epochs(method: Method, training: Training) -> float:
    """Passes over the training mix in force: the job's, else the recipe's for the objective."""
    return RECIPES[method.objective].epochs if training.epochs is None else training.epochs


def resolved_training(method: Method, training: Training, planned_rate: float | None = None) -> Training:
    """The settings with everything filled in that follows from the objective.

    Args:
        method: of the job.
        training: of the job.
        planned_rate: what the plan froze; it goes before this version's recipes.
    """
    rate = learning_rate(method, training) if planned_rate is None else planned_rate
    return training.model_copy(update={"learning_rate": rate, "epochs": epochs(method, training)})
