"""Jobs whose model or data come from a server that speaks the hub's API."""

from __future__ import annotations

from typing import Any

from finetune_api.stages import PrepareResult, StageResults
from finetune_runner.context import StageContext
from finetune_runner.hub import Account
from finetune_runner.model_source import FetchedModel
from tests.runner.hub_server import HubServer
from tests.runner.stores import PrepareWorld

OFFICIAL = "acme/base"


def account(server: HubServer, token: str | None = None) -> Account:
    return Account(token, server.endpoint)


def secret(world: PrepareWorld, server: HubServer, token: str = "") -> dict[str, str]:
    folder = world.folder / "secrets" / "hf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "HF_ENDPOINT").write_text(server.endpoint)
    if token:
        (folder / "HF_TOKEN").write_text(token)
    return {"name": "hf"}


def context_of(
    world: PrepareWorld, server: HubServer, results: StageResults | None = None, **model: Any
) -> StageContext:
    wanted = {"source": f"hf://{OFFICIAL}", "secretRef": secret(world, server), **model}
    task = world.task({"train": [{"source": "file:///a.jsonl"}]}, model=wanted)
    return world.open(task.model_copy(update={"results": results or StageResults()}))


def prepared(model: FetchedModel) -> StageResults:
    return StageResults(
        prepare=PrepareResult.from_wire(
            {
                "revision": model.revision,
                "modelDigest": model.digest,
                "model": {"architecture": "A", "parameters": 1},
                "rows": {},
                "trainTokens": 1,
                "lengths": {},
                "dataDigest": "d",
                "testDigest": "t",
            }
        )
    )
