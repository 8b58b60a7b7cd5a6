"""Whether the operator and its cluster fit together: the version of Kubernetes, and CRDs of this contract."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_api.base import API_GROUP_VERSION
from finetune_api.crd import KINDS, Kind, fields, schema_of
from finetune_operator.api import Api, ApiError

MINIMUM_KUBERNETES = (1, 33)
"""The oldest minor whose release the project is tested against (docs/install.md)."""

PUBLISHED = f"/openapi/v3/apis/{API_GROUP_VERSION}"
"""Where the API server shows the schemas of our CRDs to everybody who may log in: no right on CRDs is needed."""

NAMED_FIELDS = 3
"""Fields named in a message; the others are counted."""


def _number(text: object) -> int:
    """`33+`, as some distributions write it, is 33."""
    digits = re.match(r"\d+", str(text))
    return int(digits[0]) if digits else 0


def kubernetes_problem(told: Mapping[str, Any]) -> str:
    """Why this Kubernetes cannot be used, from what `GET /version` tells; empty when it can. Pure.

    An API server that emulates an older minor behaves as that one.
    """
    binary = (told.get("major"), told.get("minor"))
    emulated = (told.get("emulationMajor"), told.get("emulationMinor"))
    major, minor = emulated if all(emulated) else binary
    if (_number(major), _number(minor)) >= MINIMUM_KUBERNETES:
        return ""
    wanted = ".".join(str(part) for part in MINIMUM_KUBERNETES)
    version = str(told.get("gitVersion") or f"{major}.{minor}")
    if (major, minor) != binary:
        version += f" (emulating {major}.{minor})"
    return f"Kubernetes {version} is not supported: this operator needs {wanted} or newer; upgrade the cluster"


def _paths(schema: Mapping[str, Any]) -> Iterator[str]:
    for part in ("spec", "status"):
        for row in fields(schema.get("properties", {}).get(part, {}), part):
            yield row.path


def _kind_of(schema: Mapping[str, Any]) -> str:
    for named in schema.get("x-kubernetes-group-version-kind", ()):
        if f"{named.get('group')}/{named.get('version')}" == API_GROUP_VERSION:
            return str(named.get("kind", ""))
    return ""


def _few(paths: Sequence[str]) -> str:
    """The first of them; those below one that is named say nothing new."""
    tops = [path for path in paths if not any(path.startswith((f"{other}.", f"{other}[")) for other in paths)]
    more = f" and {len(tops) - NAMED_FIELDS} more" if len(tops) > NAMED_FIELDS else ""
    return ", ".join(tops[:NAMED_FIELDS]) + more


def contract_problem(document: Mapping[str, Any], kinds: Sequence[Kind] = KINDS) -> str:
    """Why these CRDs and this operator do not fit, from the API server's OpenAPI document; empty when they do. Pure.

    Under older CRDs the API server would drop what the operator writes; under newer ones the operator would not
    understand what it reads.
    """
    published = {_kind_of(schema): schema for schema in document.get("components", {}).get("schemas", {}).values()}
    for kind in kinds:
        schema = published.get(kind.name)
        if schema is None:
            return f"the API server does not show the schema of {kind.crd_name} yet"
        ours, theirs = list(_paths(schema_of(kind))), list(_paths(schema))
        if missing := [path for path in ours if path not in set(theirs)]:
            return (
                f"CRD {kind.crd_name} is older than this operator, it lacks {_few(missing)}; apply the CRDs of the "
                "operator's version (crds/*.yaml)"
            )
        if unknown := [path for path in theirs if path not in set(ours)]:
            return (
                f"CRD {kind.crd_name} is newer than this operator, which does not know {_few(unknown)}; install the "
                "operator of the CRDs' version"
            )
    return ""


async def incompatibility(api: Api) -> str:
    """Why the operator must not work on this cluster; empty when it may. One line."""
    try:
        problem = kubernetes_problem(await api.request("GET", "/version", attempts=1))
        return problem or contract_problem(await api.request("GET", PUBLISHED, attempts=1))
    except ApiError as error:
        if error.status == 404:
            return "the API server does not show the schemas of the CRDs yet"
        # A cluster that hides its discovery from service accounts is judged by what it answers to everything else.
        return "" if error.status in (401, 403) else f"the API server does not tell its version and schemas: {error}"
