"""The base model cannot be used."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="ModelUnusable",
    retry="never",
    counts=True,
    hint="Use a base model in safetensors format with a chat template.",
)
