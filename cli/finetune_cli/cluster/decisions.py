"""A person's decision on a version: added under their own name, never over anybody else's."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Literal

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion, Decision
from finetune_api.base import whole_seconds
from finetune_cli.cluster.api import JSON, JSON_PATCH
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.objects import fetch_adapter, fetch_version, read_as
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import ADAPTER_VERSIONS, ADAPTERS
from finetune_cli.decision_rules import refuse_if_decided, refuse_own_approval
from finetune_cli.errors import CliError
from finetune_cli.options import VersionName

TRIES = 5
ANSWER_S = 15.0
"""How long the operator is given to say what follows from a decision."""
LOOK_EVERY_S = 0.3


def decision_patch(version: AdapterVersion, entry: Decision) -> list[JSON]:
    """A JSON patch that adds one entry to the version as it was read, and conflicts when it has changed since."""
    wire = entry.to_wire()
    add: JSON = {"op": "add", "path": "/spec/decisions/-", "value": wire}
    if not version.spec.decisions:
        add = {"op": "add", "path": "/spec/decisions", "value": [wire]}
    same = {"op": "replace", "path": "/metadata/resourceVersion", "value": version.metadata.resource_version}
    return [same, add]


def decide_in_cluster(
    connection: Connection, wanted: VersionName, decision: Literal["approve", "reject"], reason: str, now: datetime
) -> tuple[AdapterVersion, Adapter]:
    """Record the caller's decision; version and Adapter as stored then.

    Raises CliError when the caller lacks the right, the gate failed, or it is decided already.
    """
    user = connection.user_name()
    entry = Decision(by=user, decision=decision, reason=reason, at=whole_seconds(now))
    for attempt in range(TRIES):
        version = fetch_version(connection, wanted)
        adapter = fetch_adapter(connection, wanted.adapter)
        refuse_if_decided(version, adapter.spec.policy, wanted, user)
        if decision == "approve":
            refuse_own_approval(version, adapter.spec.policy, wanted, user)
        name = version.metadata.name
        try:
            stored = connection.api.patch(
                ADAPTER_VERSIONS, connection.namespace, name, decision_patch(version, entry), JSON_PATCH
            )
        except Refusal as refusal:
            if refusal.code == 409 and attempt < TRIES - 1:
                continue
            raise explain(
                refusal, "patch", ADAPTER_VERSIONS, connection.namespace, name, connection.api.server
            ) from refusal
        return read_as(AdapterVersion, stored), adapter
    raise CliError(f"{wanted} keeps being changed by somebody else", "Try again.")


def wait_for_answer(
    connection: Connection,
    version: AdapterVersion,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[AdapterVersion, Adapter, bool]:
    """Version and Adapter when the operator has looked at the decision, and whether it has within `ANSWER_S`."""
    deadline = clock() + ANSWER_S
    name = version.metadata.name
    while True:
        with connection.asking("get", ADAPTER_VERSIONS, name):
            version = read_as(AdapterVersion, connection.api.get(ADAPTER_VERSIONS, connection.namespace, name))
        with connection.asking("get", ADAPTERS, version.spec.adapter):
            adapter = read_as(Adapter, connection.api.get(ADAPTERS, connection.namespace, version.spec.adapter))
        seen = version.status is not None and version.status.observed_generation >= version.metadata.generation
        if seen or clock() >= deadline:
            return version, adapter, seen
        pause(LOOK_EVERY_S)
