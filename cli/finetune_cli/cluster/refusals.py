"""What an API server refuses, as a sentence with a fix. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from finetune_cli.cluster.resources import OURS, Resource
from finetune_cli.errors import CliError, CliExit

_POLICY = re.compile(r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*? denied request: (?P<said>.*)", re.DOTALL)
_UNREADY = "failed to configure policy"
"""What k8s.io/apiserver says while its own discovery, renewed every 30 s, does not know a policy's `paramKind`."""
_ROLES = {"get": "viewer", "list": "viewer", "watch": "viewer", "create": "author", "patch": "author"}


@dataclass(eq=False)
class Refusal(Exception):
    """The server's answer when it is not the object: its code (0: no answer at all), and its Status object."""

    code: int
    reason: str = ""
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """For logs and tests."""
        return f"{self.code} {self.reason}: {self.message}"

    @property
    def passing(self) -> bool:
        """Whether the same request may well be answered a moment later."""
        return self.code in (0, 408, 410, 429) or self.code >= 500

    @property
    def unready(self) -> bool:
        """Whether an admission policy could not judge, because it does not know our kinds yet."""
        return _UNREADY in self.message


def refusal_of(code: int, body: bytes) -> Refusal:
    """Take an error answer apart; whatever is no Status object becomes its message."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return Refusal(code, "", body[:300].decode("utf-8", "replace").strip())
    details = told.get("details")
    return Refusal(
        code,
        str(told.get("reason", "")),
        str(told.get("message", "")),
        details if isinstance(details, dict) else {},
    )


def policy_message(message: str) -> str:
    """What an admission policy said, without the frame the API server puts around it; empty when none spoke."""
    found = _POLICY.search(message)
    return found["said"].strip() if found else ""


def _forbidden(refusal: Refusal, verb: str, resource: Resource, namespace: str | None) -> CliError:
    said = policy_message(refusal.message)
    if said:
        return CliError(f"refused by admission policy: {said}", "Ask whoever runs the cluster for that right.")
    user = re.search(r'User "([^"]*)"', refusal.message)
    who = user[1] if user else "you"
    where = f" in namespace {namespace}" if namespace and resource.namespaced else ""
    role = "approver" if (resource.plural, verb) == ("adapterversions", "patch") else _ROLES.get(verb, "")
    grant = (
        f"Ask for it, for example the role finetune-{role}"
        if resource.group == "finetune.dev" and role
        else "Ask for it"
    )
    scope = f" -n {namespace}" if where else ""
    if resource.group == "finetune.dev" and role and where:
        name = re.sub(r"[^a-z0-9.-]+", "-", who.lower()).strip("-.") or "me"
        grant += f": kubectl create rolebinding {name}-{role}{scope} --clusterrole=finetune-{role} --user={who}"
    return CliError(f"{who} may not {verb} {resource.full_name}{where}", f"{grant.rstrip('.')}.")


def explain(refusal: Refusal, verb: str, resource: Resource, namespace: str | None, name: str, server: str) -> CliError:
    """The sentence for people. `verb` is the RBAC verb that was tried; `name` is empty for a list."""
    what = f"{resource.kind} {name}".strip()
    where = f" in namespace {namespace}" if namespace and resource.namespaced else ""
    if refusal.code == 0:
        return CliError(
            f"the API server {server} does not answer: {refusal.message}",
            "Check the network and `kubectl cluster-info`, or choose another cluster with --context.",
            CliExit.FAILED,
        )
    if refusal.code == 401:
        return CliError(
            f"the API server {server} does not accept your credentials",
            "They are wrong or have expired: log in again, then try `kubectl auth whoami`.",
        )
    if refusal.code == 403:
        return _forbidden(refusal, verb, resource, namespace)
    if refusal.code == 404 and not refusal.details.get("name") and resource.kind in OURS:
        return CliError(
            f"the cluster {server} does not know {resource.full_name}: the CRDs are not installed",
            "Install the operator (docs/install.md), or choose another cluster with --context.",
        )
    if refusal.code == 404:
        return CliError(f"there is no {what}{where}", "`kubectl finetune list -A` shows the jobs of all namespaces.")
    if refusal.code == 409:
        return CliError(f"{what}{where} was changed by somebody else: {refusal.message}", "Look again and repeat.")
    if refusal.passing:
        return CliError(
            f"the API server {server} cannot answer now ({refusal.code}): {refusal.message}",
            "Try again.",
            CliExit.FAILED,
        )
    said = policy_message(refusal.message) or refusal.message or f"HTTP {refusal.code}"
    if refusal.unready:
        return CliError(
            f"the cluster {server} cannot judge {what} yet: {said}",
            "After an installation or a restart the API server needs up to half a minute to know our kinds; this took "
            "longer. Look whether the CRDs are installed: `kubectl get crd gpupools.finetune.dev`.",
            CliExit.FAILED,
        )
    return CliError(f"the API server refuses to {verb} {what}{where}: {said}", "")
