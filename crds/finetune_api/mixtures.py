"""What a mixture of experts cannot be trained with, said once for prepare and for the forecast."""

from __future__ import annotations

from finetune_api.job.method import Method
from finetune_api.stages import ModelFacts


def refusal(method: Method, facts: ModelFacts) -> tuple[str, str] | None:
    """Why the method does not load the model, and the fix; None where it does."""
    if facts.experts <= 1 or method.bits != 8:
        return None
    return (
        f"method.bits: LLM.int8 quantises linear layers only, and {facts.architecture} has its weights in "
        f"{facts.experts} experts, which are none: they would stay in 16 bit",
        "set method.bits: 4, which quantises the experts too, or method.type: lora",
    )
