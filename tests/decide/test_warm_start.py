"""method.warmStartFrom: resolved when accepted, compared with the base when planned, part of what was made."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.adapterversion import AdapterVersion
from tests.decide.world import PREPARED, World, job_dict

START = {"warmStartFrom": {"version": "triage-v1"}}


def made() -> AdapterVersion:
    world = World()
    world.run_to_end()
    version = world.versions[0]
    other = version.spec.origin.model_copy(update={"uid": "uid-of-another-job"})
    return version.model_copy(update={"spec": version.spec.model_copy(update={"origin": other})})


def warm_world(version: AdapterVersion | None = None, **changes: Any) -> World:
    world = World(job_dict(method=START))
    if version is not None:
        world.versions = [version.model_copy(update={"spec": version.spec.model_copy(update=changes)})]
    return world


def test_a_warm_start_travels_by_digest_and_is_told_in_the_version() -> None:
    parent = made()
    world = warm_world(parent)
    world.run_to_end()
    start = next(s.task for s in world.started if s.task.stage == "train").warm_start
    assert start is not None
    assert (start.version, start.uri, start.digest) == ("triage-v1", parent.spec.uri, parent.spec.digest)
    assert world.versions[-1].spec.warm_started_from == "triage-v1"
    assert parent.spec.warm_started_from == ""


def test_the_fingerprint_knows_the_start_by_its_digest() -> None:
    parent = made()
    prints = []
    for digest in (parent.spec.digest, "0" * 64):
        world = warm_world(parent, digest=digest)
        world.run_to("baseline")
        assert world.status.resolved is not None
        prints.append(world.status.resolved.fingerprint)
    assert len({*prints, parent.spec.fingerprint}) == 3


def test_a_missing_version_is_waited_for() -> None:
    world = warm_world()
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Pending", "VersionNotFound")
    assert "there is no AdapterVersion triage-v1 in namespace team-a" in world.status.message
    world.versions = [made()]
    world.settle()
    assert world.status.stages[-1].name == "prepare"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"served_as": "merged"}, "triage-v1 is served merged and holds no adapter to go on from"),
        (
            {"uri": "s3://bucket/store/team-b/triage/versions/v1"},
            "outside of this job's storage s3://bucket/store/team-a/",
        ),
        ({"uri": "s3://bucket/store-2/team-a/triage/versions/v1"}, "outside of this job's storage"),
    ],
)
def test_a_version_that_cannot_be_gone_on_from_is_refused(changes: dict[str, Any], words: str) -> None:
    world = warm_world(made(), **changes)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "InvalidSpec")
    assert words in world.status.message
    assert world.started == []


def test_another_base_is_refused_once_prepare_knows_it() -> None:
    world = warm_world(made())
    world.settle()
    world.succeed({**PREPARED, "modelDigest": "x" * 64})
    assert (world.status.phase, world.status.reason) == ("Failed", "InvalidSpec")
    assert "triage-v1 was made on another base model" in world.status.message
    assert [start.task.stage for start in world.started] == ["prepare"]
