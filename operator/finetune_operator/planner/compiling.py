"""Whether training compiles its blocks with torch.compile: where it is asked for, or where it pays. Pure."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import ModelFacts, TrainPlan
from finetune_operator.planner.steps import PlanError

LEAST_GAIN = 0.14
"""Of a step's time, published: 14 to 19 % less (axolotl, Qwen3-8B LoRA); 27 % more tokens are 21 % (torchtune)."""
LONGEST_COMPILATION_S = 104
"""Block by block, published: 29 to 104 s (torchtune#1445 before its changes, Llama 3 8B to 70B QLoRA, A100)."""
SHORTEST_TRAINING_S = 3600
"""Our choice: LEAST_GAIN of an hour is 504 s, about five times the longest compilation."""


def why_not(facts: ModelFacts, plan: TrainPlan, bits: int | None) -> str:
    """What keeps blocks from being compiled at all; empty = nothing."""
    if plan.strategy not in ("single", "ddp"):
        return f"blocks in parts are not compiled, and the strategy is {plan.strategy}"
    if plan.method == "qlora" and bits == 8:
        return "LLM.int8 is not compiled"
    if facts.experts > 1:
        return f"mixtures of experts are not compiled, and {facts.architecture} is one"
    return ""


def compiles(
    spec: FineTuneJobSpec, facts: ModelFacts, plan: TrainPlan, fastest_training_s: float | None
) -> tuple[bool, str]:
    """Whether the plan compiles, and why or why not.

    Args:
        spec: training.torchCompile says auto, enabled or disabled.
        facts: of the base model.
        plan: all else of it.
        fastest_training_s: lower end of the forecast; None where it is not known.

    Raises:
        PlanError: asked for where it cannot be done.
    """
    asked = spec.training.torch_compile
    if asked == "disabled":
        return False, "training.torchCompile: disabled"
    obstacle = why_not(facts, plan, spec.method.bits)
    if asked == "enabled":
        if obstacle:
            raise PlanError(f"training.torchCompile: {obstacle}; use auto")
        return True, "training.torchCompile: enabled"
    return (False, obstacle) if obstacle else _pays(plan, fastest_training_s)


def _pays(plan: TrainPlan, fastest_training_s: float | None) -> tuple[bool, str]:
    """Only what published gains are of: a GPU and packed rows."""
    if not plan.gpus_per_node:
        return False, "on a CPU it seldom pays (benchmarks/README.md)"
    if not plan.packing:
        return False, "rows are not packed: no published gain is of such"
    if fastest_training_s is None:
        return False, "how long training takes is not known"
    minutes = f"{fastest_training_s / 60:.0f} min at the least"
    if fastest_training_s < SHORTEST_TRAINING_S:
        return False, f"training is forecast to take {minutes}: too short to win back the compilation"
    return True, f"training is forecast to take {minutes}: the compilation is won back"
