"""A job that asks more of its pool than the pool allows is refused at once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for
from tests.manifests.people import Person, in_force, job


@dataclass(frozen=True)
class Pools:
    """The names of this test's pools."""

    big: str
    cpu: str
    closed: str


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    wire = {"gpusPerNode": 8, "gpuMemoryGib": 80, "image": "runner:1"} | spec
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": name}, "spec": wire}


@pytest.fixture(scope="module")
def pools(installed: Cluster) -> Iterator[Pools]:
    suffix = secrets.token_hex(3)
    names = Pools(f"big-{suffix}", f"cpu-{suffix}", f"closed-{suffix}")
    installed.apply(
        [
            manifest(names.big, limits={"maxNodes": 4, "maxGpus": 16}),
            manifest(names.cpu, gpusPerNode=0, gpuMemoryGib=0, price={"gpuPerHour": 0}),
            manifest(names.closed, allowedNamespaces=["somebody-else"]),
        ]
    )
    yield names
    installed.kubectl("delete", "gpupool", names.big, names.cpu, names.closed)


@pytest.fixture
def person(installed: Cluster, namespace: str, pools: Pools) -> Person:
    """The administrator, once all three pools are known to the policy."""
    in_force(installed, namespace, compute_of(pools.big, gpusPerNode=9), "have 8")
    in_force(installed, namespace, compute_of(pools.cpu, gpusPerNode=1), "have 0")
    in_force(installed, namespace, compute_of(pools.closed), "may not use GPUPool")
    return Person(installed, namespace)


def compute_of(pool: str, **compute: Any) -> dict[str, Any]:
    return job(compute={"pool": pool, **compute})


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("within the limits", "big", {"nodes": 4, "gpusPerNode": 4}, ""),
    ("nothing said", "big", {}, ""),
    ("nothing said, no GPUs", "cpu", {}, ""),
    (
        "a namespace that is not allowed",
        "closed",
        {},
        "spec.compute.pool: namespace {namespace} may not use GPUPool {pool}; use another pool, or ask the platform",
    ),
    (
        "more GPUs than a node has",
        "big",
        {"gpusPerNode": 9},
        "spec.compute.gpusPerNode: 9 asked, nodes of GPUPool {pool} have 8; ask for less, or use more nodes",
    ),
    (
        "GPUs of a CPU pool",
        "cpu",
        {"gpusPerNode": 1},
        "spec.compute.gpusPerNode: 1 asked, nodes of GPUPool {pool} have 0",
    ),
    (
        "no GPU of a GPU pool",
        "big",
        {"gpusPerNode": 0},
        "spec.compute.gpusPerNode: 0 asked, but GPUPool {pool} has GPUs",
    ),
    ("too many nodes", "big", {"nodes": 5}, "spec.compute.nodes: 5 asked, GPUPool {pool} allows 4 per job"),
    (
        "too many GPUs in all",
        "big",
        {"nodes": 3, "gpusPerNode": 8},
        "spec.compute.nodes x gpusPerNode: 24 GPUs asked, GPUPool {pool} allows 16 per job",
    ),
    ("a cost without a price", "big", {"maxCost": 5}, "spec.compute.maxCost: GPUPool {pool} has no price"),
    ("a cost with a price", "cpu", {"maxCost": 5}, ""),
]


@pytest.mark.parametrize(("pool", "compute", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_jobs(person: Person, pools: Pools, namespace: str, pool: str, compute: dict[str, Any], words: str) -> None:
    name = getattr(pools, pool)
    said = person.create(compute_of(name, **compute))
    assert words.format(pool=name, namespace=namespace) in said
    assert bool(said) == bool(words), said


def test_a_pool_that_does_not_exist_yet_is_no_reason_to_refuse(person: Person) -> None:
    assert person.create(compute_of("tomorrow", nodes=64, gpusPerNode=16)) == ""


def test_a_job_without_a_pool_is_held_to_the_default_pool(installed: Cluster, namespace: str, person: Person) -> None:
    name = f"default-{secrets.token_hex(3)}"
    assert person.create(job(compute={"gpusPerNode": 2})) == ""
    installed.apply(manifest(name, gpusPerNode=1, default=True))
    try:
        wait_for(
            lambda: f"2 asked, nodes of GPUPool {name} have 1" in person.create(job(compute={"gpusPerNode": 2})),
            30,
            "the default pool's limit",
        )
        assert person.create(job()) == ""
    finally:
        installed.kubectl("delete", "gpupool", name)


def test_a_job_goes_on_when_its_pool_shrinks(installed: Cluster, namespace: str, person: Person, pools: Pools) -> None:
    name = f"shrinks-{secrets.token_hex(3)}"
    installed.apply(manifest(name))
    try:
        assert person.create(job(suspend=True, compute={"pool": name, "gpusPerNode": 4}), dry=False) == ""
        installed.apply(manifest(name, gpusPerNode=2))
        in_force(installed, namespace, compute_of(name, gpusPerNode=4), "have 2")
        assert person.patch("finetunejobs", "probe", {"spec": {"suspend": False}}) == ""
        assert person.patch("finetunejobs/status", "probe", {"status": {"phase": "Pending"}}) == ""
        refused = person.patch("finetunejobs", "probe", {"spec": {"training": {"epochs": 9}}})
        assert "4 asked" in refused
    finally:
        installed.kubectl("delete", "gpupool", name)
