"""The licence that a source states itself: a data set's card on the hub. Other sources have none to read."""

from __future__ import annotations

from finetune_api.common import SecretRef
from finetune_runner.context import StageContext


def licence_of(context: StageContext, source: str, secret_ref: SecretRef | None) -> str:
    """Licence as the card names it, several joined by commas; empty = not stated. Raises StageError (the hub's)."""
    parts = source.removeprefix("hf://datasets/").split("/")
    if not source.startswith("hf://datasets/") or len(parts) < 2:
        return ""
    from finetune_runner import hub  # takes a while to import

    return hub.dataset_licence("/".join(parts[:2]), context.secrets.read(secret_ref).get("HF_TOKEN"))
