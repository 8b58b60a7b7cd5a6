"""Mixtures of experts: whether a model is one, and which of its layers get no adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_api.mixtures import refusal
from finetune_api.model_config import facts_of_config
from finetune_api.stages import ModelFacts
from finetune_runner.errors import StageError

EXPERTS = "experts"
REMAPPED = frozenset({"gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that PEFT takes for the experts and the router of a mixture, wherever they are (PEFT 0.21,
utils/transformers_weight_conversion.py, `_MOE_TARGET_MODULE_MAPPING`)."""


def is_mixture(model_path: Path) -> bool:
    """Whether a model's configuration names several experts. Raises OSError or ValueError when it cannot be read."""
    config = json.loads((model_path / "config.json").read_bytes())
    return facts_of_config(config, parameters=0).experts > 1


def feed_forward_names(model: Any) -> frozenset[str]:
    """Parts of names by which the feed-forward layers of a mixture are known: experts, router, shared experts.

    Empty for a dense model.
    """
    if facts_of_config(model.config.to_dict(), parameters=0).experts <= 1:
        return frozenset()
    paths = [name.split(".") for name, _ in model.named_modules()]
    # The layer around the experts, for example `mlp`; where they stand in a decoder block themselves, only they.
    around = {path[-2] for path in paths if path[-1] == EXPERTS and len(path) > 1 and not path[-2].isdigit()}
    return frozenset({EXPERTS, "router", *around}) | REMAPPED


def check_mixture(method: Method, facts: ModelFacts, model_path: Path) -> None:
    """Refuse what cannot quantise the experts of a mixture: it would stay nearly as large as in 16 bit.

    Raises StageError (INVALID_SPEC) with the fix.
    """
    if facts.experts <= 1:
        return
    refused = refusal(method, facts)
    if refused is not None:
        raise StageError(ExitCode.INVALID_SPEC, refused[0], hint=refused[1])
    if method.type == "qlora":
        refuse_unquantised_experts(_skeleton(model_path))


def refuse_unquantised_experts(model: Any) -> None:
    """A mixture whose experts are laid out as no other's cannot be quantised. Raises StageError (INVALID_SPEC)."""
    from finetune_runner.training.experts import expert_weights

    if any(True for _ in expert_weights(model)):
        return
    raise StageError(
        ExitCode.INVALID_SPEC,
        f"method.type: the experts of {type(model).__name__} cannot be quantised, they would stay in 16 bit",
        hint="set method.type: lora",
    )


def _skeleton(model_path: Path) -> Any:
    """The model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model_path), trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
