"""The licence that a source states itself: a data set's card on the hub. Other sources have none to read."""

from __future__ import annotations

from finetune_api.common import SecretRef
from finetune_runner.context import StageContext


def licence_of(context: StageContext, source: str, commit: str, secret_ref: SecretRef | None) -> str:
    """Licence as the card of a commit names it, several joined by commas; empty = not stated. Raises StageError."""
    parts = source.removeprefix("hf://datasets/").split("/")
    if not source.startswith("hf://datasets/") or len(parts) < 2:
        return ""
    from finetune_runner import hub  # takes a while to import

    repo = f"{parts[0]}/{parts[1].partition('@')[0]}"
    return hub.dataset_licence(repo, commit, hub.Account.of(context.secrets.read(secret_ref)))
