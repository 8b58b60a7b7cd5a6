"""Approvals, channels, rollback."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_operator.decide.release import decide_release, incumbent_of
from tests.decide.world import START


def adapter(
    policy: dict[str, Any] | None = None, channels: list[dict[str, str]] | None = None, **status: Any
) -> Adapter:
    spec: dict[str, Any] = {"storage": {"uri": "s3://bucket/store"}, "policy": policy or {}}
    if channels:
        spec["channels"] = channels
    wire: dict[str, Any] = {"metadata": {"name": "triage", "namespace": "team-a"}, "spec": spec}
    if status:
        wire["status"] = status
    return Adapter.from_wire(wire)


def version(number: int, verdict: str = "Passed", author: str = "ann", **decisions: str) -> AdapterVersion:
    return AdapterVersion.from_wire(
        {
            "metadata": {"name": f"triage-v{number}", "namespace": "team-a"},
            "spec": {
                "adapter": "triage",
                "version": number,
                "uri": f"s3://bucket/store/team-a/triage/versions/v{number}",
                "digest": f"{number}" * 64,
                "sizeBytes": 1,
                "servedAs": "adapter",
                "base": {"source": "s3://m/x", "revision": "r", "digest": "d"},
                "origin": {"job": "j", "uid": "u", "run": number, "author": author},
                "dataDigest": "d",
                "fingerprint": f"f{number}",
                "metrics": {"f1": 0.9},
                "verdict": verdict,
                "createdAt": "2026-01-01T00:00:00Z",
                "decisions": [{"by": by, "decision": decision} for by, decision in decisions.items()],
            },
        }
    )


PHASES = [
    ({}, version(1), "PendingApproval"),
    ({}, version(1, bob="approve"), "Approved"),
    ({}, version(1, ann="approve"), "PendingApproval"),
    ({"approvals": {"fourEyes": False}}, version(1, ann="approve"), "Approved"),
    ({}, version(1, author="", ann="approve"), "Approved"),
    ({"approvals": {"required": 2}}, version(1, bob="approve"), "PendingApproval"),
    ({"approvals": {"required": 2}}, version(1, bob="approve", eve="approve"), "Approved"),
    ({}, version(1, bob="approve", eve="reject"), "Rejected"),
    ({}, version(1, "Failed", bob="approve"), "GateFailed"),
    ({"release": "automatic"}, version(1), "Approved"),
    ({"release": "automatic"}, version(1, "Inconclusive"), "PendingApproval"),
    ({"release": "automatic"}, version(1, "Failed"), "GateFailed"),
    ({}, version(1, "Inconclusive", bob="approve"), "Approved"),
]


@pytest.mark.parametrize(("policy", "candidate", "phase"), PHASES)
def test_phase_of_a_version(policy: dict[str, Any], candidate: AdapterVersion, phase: str) -> None:
    _, statuses = decide_release(adapter(policy), [candidate], START)
    status = statuses["triage-v1"]
    assert status.phase == phase
    assert status.message
    assert status.channels == (["stable"] if phase == "Approved" else [])


def test_a_channel_serves_the_latest_approved_version_by_digest() -> None:
    versions = [version(1, bob="approve"), version(2, bob="approve"), version(3)]
    status, _ = decide_release(adapter(), versions, START)
    assert [(c.name, c.version, c.digest) for c in status.channels] == [("stable", "v2", "2" * 64)]
    assert status.latest_version == "v3"


def test_a_pinned_channel_is_the_way_back() -> None:
    versions = [version(1, bob="approve"), version(2, bob="approve")]
    status, statuses = decide_release(adapter(channels=[{"name": "stable", "version": "v1"}]), versions, START)
    assert status.channels[0].version == "v1"
    assert statuses["triage-v2"].channels == []


@pytest.mark.parametrize("wish", ["v3", "v9"])
def test_a_wish_that_cannot_be_met_keeps_what_is_served_and_says_why(wish: str) -> None:
    versions = [version(1, bob="approve"), version(3, "Failed")]
    first, _ = decide_release(adapter(), versions, START)
    wished = adapter(channels=[{"name": "stable", "version": wish}])
    again = Adapter.from_wire(wished.to_wire() | {"status": first.to_wire()})
    status, _ = decide_release(again, versions, START)
    assert status.channels[0].version == "v1"
    assert "still serving v1" in status.channels[0].message
    assert status.conditions[0].status == "False"


def test_rejecting_what_is_served_takes_it_down() -> None:
    status, _ = decide_release(adapter(), [version(1, bob="approve")], START)
    served = Adapter.from_wire(adapter().to_wire() | {"status": status.to_wire()})
    after, _ = decide_release(served, [version(1, bob="reject")], START)
    assert after.channels[0].version == ""


def test_the_incumbent_is_what_is_served_or_else_the_newest_that_stands() -> None:
    versions = [version(1, bob="approve"), version(2), version(3, "Failed")]
    status, _ = decide_release(adapter(), versions, START)
    served = Adapter.from_wire(adapter().to_wire() | {"status": status.to_wire()})
    chosen = incumbent_of(served, versions)
    assert chosen is not None
    assert chosen.spec.version == 1
    waiting = incumbent_of(adapter(), [version(2), version(3, "Failed")])
    assert waiting is not None
    assert waiting.spec.version == 2
    assert incumbent_of(None, []) is None


def test_looking_again_changes_nothing() -> None:
    versions = [version(1, bob="approve")]
    first, statuses = decide_release(adapter(), versions, START)
    served = Adapter.from_wire(adapter().to_wire() | {"status": first.to_wire()})
    marked = [v.model_copy(update={"status": statuses[v.metadata.name]}) for v in versions]
    later, later_statuses = decide_release(served, marked, START.replace(year=2027))
    assert (later, later_statuses) == (first, statuses)
