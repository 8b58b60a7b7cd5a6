"""Objects of a cluster as the contract's models, also when another version of the operator wrote them."""

from __future__ import annotations

import copy
import difflib
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.base import Contract
from finetune_api.finetunejob import FineTuneJob
from finetune_api.stages import Progress
from finetune_cli.cluster.api import JSON
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import ADAPTER_VERSIONS, ADAPTERS, FINETUNE_JOBS, Resource
from finetune_cli.errors import CliError
from finetune_cli.options import VersionName

Model = TypeVar("Model", bound=Contract)


def read_as(model: type[Model], wire: JSON) -> Model:
    """The object as its model; fields that this version does not know are left out.

    Raises CliError when what is left is not readable either, naming the first field.
    """
    wire = copy.deepcopy(wire)
    try:
        return model.from_wire(wire)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "extra_forbidden":
                _remove(wire, detail["loc"])
    try:
        return model.from_wire(wire)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CliError(
            f"{model.__name__} {wire.get('metadata', {}).get('name', '')} cannot be read: {where}: {first['msg']}",
            "Another version of the operator wrote it: use the command line of that version, or -o yaml.",
        ) from error


def _remove(wire: Any, location: tuple[str | int, ...]) -> None:
    *path, last = location
    try:
        for step in path:
            wire = wire[step]
        del wire[last]
    except (KeyError, IndexError, TypeError):
        # The location names a member of a union, which is no step of the object: the second reading tells.
        return


def live_progress(wire: JSON) -> Progress | None:
    """`status.live`: what the running attempt said last; None when nothing runs or nothing was heard."""
    live = (wire.get("status") or {}).get("live")
    return read_as(Progress, live) if isinstance(live, dict) else None


def _close(connection: Connection, resource: Resource, name: str) -> str:
    """What else there is, for an error: near names first."""
    try:
        listed = connection.api.list(resource, connection.namespace)["items"]
    except Refusal:
        return ""
    names = sorted(item["metadata"]["name"] for item in listed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return f"There is none in namespace {connection.namespace}; -n NAME chooses another namespace."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"There are: {', '.join(names[:8])}{more}. -n NAME chooses another namespace."


def fetch(connection: Connection, resource: Resource, name: str) -> JSON:
    """One object of the connection's namespace as it is stored. Raises CliError with near names when there is none."""
    try:
        return connection.api.get(resource, connection.namespace, name)
    except Refusal as refusal:
        error = explain(refusal, "get", resource, connection.namespace, name, connection.api.server)
        # Without a name in the answer it is the kind that is missing, not the object.
        if refusal.code == 404 and refusal.details.get("name"):
            error.fix = _close(connection, resource, name) or error.fix
        raise error from refusal


def fetch_job(connection: Connection, name: str) -> tuple[FineTuneJob, JSON]:
    """A FineTuneJob and its wire form."""
    wire = fetch(connection, FINETUNE_JOBS, name)
    return read_as(FineTuneJob, wire), wire


def fetch_adapter(connection: Connection, name: str) -> Adapter:
    """An Adapter."""
    return read_as(Adapter, fetch(connection, ADAPTERS, name))


def fetch_versions(connection: Connection, adapter: str) -> list[AdapterVersion]:
    """All versions of an Adapter, oldest first."""
    with connection.asking("list", ADAPTER_VERSIONS):
        items = connection.api.list(ADAPTER_VERSIONS, connection.namespace)["items"]
    found = [read_as(AdapterVersion, item) for item in items if item.get("spec", {}).get("adapter") == adapter]
    return sorted(found, key=lambda version: version.spec.version)


def fetch_version(connection: Connection, wanted: VersionName) -> AdapterVersion:
    """One version. Raises CliError naming those that exist."""
    versions = fetch_versions(connection, wanted.adapter)
    for version in versions:
        if version.spec.version == wanted.number:
            return version
    if not versions:
        fetch_adapter(connection, wanted.adapter)
    there = ", ".join(f"v{version.spec.version}" for version in versions) or "none"
    raise CliError(
        f"there is no version {wanted} in namespace {connection.namespace}",
        f"There are: {there}. `{connection.command('versions', wanted.adapter)}` shows them.",
    )


def version_of_job(connection: Connection, job: FineTuneJob) -> AdapterVersion | None:
    """The version that the job's run published; None when there is none, or it is gone, or may not be read."""
    if job.status is None or job.status.version is None:
        return None
    try:
        return read_as(
            AdapterVersion, connection.api.get(ADAPTER_VERSIONS, connection.namespace, job.status.version.name)
        )
    except Refusal as refusal:
        if refusal.code in (403, 404):
            return None
        raise explain(
            refusal, "get", ADAPTER_VERSIONS, connection.namespace, job.status.version.name, connection.api.server
        ) from refusal
