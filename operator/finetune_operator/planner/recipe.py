"""Settings far from what is published for the objective, named before money is spent. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from finetune_api.job.method import Method
from finetune_api.job.recipe import RECIPES, learning_rate, rate_share
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import ModelFacts, TrainPlan
from finetune_api.wording import counted

SMALLEST_MODEL = 300_000_000
"""Parameters from which on the published rates hold; small models take, and need, higher ones."""
LARGEST_SCALE = 8.0
"""Of alpha/rank and alpha/sqrt(rank). Published: 0.5 to 4 (Hu et al. 2021, Dettmers et al. 2023), and with rsLoRA
16/sqrt(rank) (Kalajdzievski 2023), 8 at most."""
FEWEST_STEPS = 10
"""Below it warm-up and decay leave no step at the full rate to speak of."""
MOST_PREFERENCE_EPOCHS = 3.0
"""Rafailov et al. 2023 and the alignment-handbook train one epoch, Zephyr three (Tunstall et al. 2023)."""


def scale_of(method: Method) -> float:
    """What the adapter's update is multiplied by."""
    return method.alpha / (math.sqrt(method.rank) if method.use_rslora else method.rank)


def _rate(spec: FineTuneJobSpec) -> Iterator[str]:
    asked, objective, optimizer = spec.training.learning_rate, spec.method.objective, spec.training.optimizer
    if asked is None:
        return
    recipe, share = RECIPES[objective], rate_share(optimizer)
    usual = learning_rate(spec.method, spec.training.model_copy(update={"learning_rate": None}))
    lowest, highest = recipe.lowest_rate * share, recipe.highest_rate * share
    for_what = f"{objective} with {optimizer}"
    if asked > highest:
        yield (
            f"training.learningRate: {asked:g} is {asked / usual:.0f} times what published LoRA recipes take for "
            f"{for_what} ({usual:g}) and may wreck the model; leave it out, or set {usual:g} to {highest:g}"
        )
    elif asked < lowest:
        yield (
            f"training.learningRate: {asked:g} is {usual / asked:.0f} times below what published LoRA recipes take for "
            f"{for_what} ({usual:g}), about a rate of full fine-tuning: the adapter may hardly move; leave it out, or "
            f"set {lowest:g} to {highest:g}"
        )


def recipe_warnings(spec: FineTuneJobSpec, facts: ModelFacts) -> list[str]:
    """Sentences that name field, number and fix; empty where nothing is unusual, and for models of toy size."""
    if facts.parameters < SMALLEST_MODEL:
        return []
    method, training = spec.method, spec.training
    found = list(_rate(spec))
    scale = scale_of(method)
    if scale > LARGEST_SCALE:
        root = "sqrt(rank)" if method.use_rslora else "rank"
        fitting = max(1, math.floor(LARGEST_SCALE * (math.sqrt(method.rank) if method.use_rslora else method.rank)))
        found.append(
            f"method.alpha: what the adapter adds is multiplied by alpha/{root} = {scale:.3g}, which works like a "
            f"learning rate as many times higher; published recipes stay below {LARGEST_SCALE:g}: {fitting} at most"
        )
    if method.objective != "sft" and training.epochs is not None and training.epochs > MOST_PREFERENCE_EPOCHS:
        found.append(
            f"training.epochs: {training.epochs:g} passes with {method.objective}, where recipes take 1 to "
            f"{MOST_PREFERENCE_EPOCHS:g}: later ones learn the pairs by heart; lower it, or leave it out"
        )
    return found


def few_steps_warning(spec: FineTuneJobSpec, facts: ModelFacts, rows: int, plan: TrainPlan) -> list[str]:
    """A training that is over before it has begun, for want of rows or of a smaller batch; as `recipe_warnings`.

    `rows`: of the training mix.
    """
    training, passes = spec.training, plan.epochs or 1.0
    asked_for = training.max_steps is not None or facts.parameters < SMALLEST_MODEL
    if asked_for or plan.total_steps >= FEWEST_STEPS:
        return []
    processes = plan.nodes * max(1, plan.gpus_per_node)
    smaller = max(1, int(passes * rows / FEWEST_STEPS) // processes) * processes
    fix = f"set training.globalBatchSize: {smaller}" if smaller < training.global_batch_size else "give more rows"
    more = "" if rows >= training.global_batch_size else ", and each sees a row more than once"
    return [
        f"training.globalBatchSize: {rows} rows and {passes:g} epochs make "
        f"{counted(plan.total_steps, 'optimiser step')} of {training.global_batch_size} examples{more}: too few to "
        f"learn much; {fix}, or raise training.epochs"
    ]
