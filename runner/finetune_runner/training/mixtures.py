"""Mixtures of experts: whether a model is one, and which of its layers get no adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.model_config import facts_of_config

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
