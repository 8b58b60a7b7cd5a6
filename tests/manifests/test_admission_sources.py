"""A namespace's jobs read and write only where its lists allow, and never files of a node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for
from tests.manifests.people import Person, adapter, in_force, job

SOURCES, STORAGE, ENDPOINTS = (f"finetune.dev/allowed-{what}" for what in ("sources", "storage", "endpoints"))
MINIO = "https://minio.storage:9000"


def reads(*uris: str, model: str = "s3://team-a/model") -> dict[str, Any]:
    return {"model": {"source": model}, "data": {"train": [{"source": uri} for uri in uris]}}


def writes(uri: str, **storage: str) -> dict[str, Any]:
    return {"output": {"adapterRef": {"name": "triage"}, "storage": {"uri": uri, **storage}}}


def data(**splits: str) -> dict[str, Any]:
    train = [{"source": "s3://team-a/t.jsonl"}]
    return {"data": {"train": train, **{name: {"source": uri} for name, uri in splits.items()}}}


TEAM = {SOURCES: "s3://team-a/, hf://org,\n s3://shared"}
FILE = ": file:// works only without a cluster (finetune run); upload to s3:// or use pvc://"
CASES: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("no list: everything", {}, reads("s3://any/x", "hf://datasets/o/n", "pvc://claim/x", model="hf://o/n"), ""),
    ("no list: any storage", {}, writes("s3://any/x", endpoint=MINIO), ""),
    ("no list: no files", {}, reads("file:///data"), "spec.data.train[0].source" + FILE),
    ("no files of models", {}, reads("s3://a-b/x", model="file:///m"), "spec.model.source" + FILE),
    ("no files as storage", {}, writes("file:///out"), "spec.output.storage.uri" + FILE),
    ("a list cannot allow files", {SOURCES: "file:///"}, reads("file:///x", model="file:///m"), "spec.model.source"),
    ("below a prefix", TEAM, reads("s3://team-a/deep/er.jsonl", "s3://shared/x", model="hf://org/model"), ""),
    (
        "any revision of a data set, any tag or digest of an image",
        {SOURCES: "s3://team-a, hf://datasets/o/n, oci://ghcr.io/team/rows, oci://host:5000/img"},
        reads(
            "hf://datasets/o/n@v1/x.csv", "oci://ghcr.io/team/rows:v1/x", "oci://ghcr.io/team/rows@sha256:" + "a" * 64
        )
        | {"model": {"source": "oci://host:5000/img:v2/model"}},
        "",
    ),
    ("another port", {SOURCES: "oci://host, s3://team-a"}, reads("oci://host:5000/img"), "oci://host:5000/img is not"),
    (
        "an image whose name begins alike",
        {SOURCES: "oci://host/img, s3://team-a"},
        reads("oci://host/img2:v1"),
        "oci://host/img2:v1 is not allowed",
    ),
    (
        "another tag than the one of the list",
        {SOURCES: "oci://host/img:v1, s3://team-a"},
        reads("oci://host/img:v1/x", "oci://host/img:v11"),
        "oci://host/img:v11 is not allowed",
    ),
    (
        "a folder of a data set that begins alike",
        {SOURCES: "hf://datasets/o/n/dir, s3://team-a"},
        reads("hf://datasets/o/n/dir@x"),
        "hf://datasets/o/n/dir@x is not allowed",
    ),
    (
        "a key that goes on with an at sign",
        {SOURCES: "s3://team-a/dir"},
        reads("s3://team-a/dir@x"),
        "s3://team-a/model is not allowed",
    ),
    ("the prefix itself", TEAM, reads("s3://shared", "s3://team-a"), ""),
    (
        "another bucket",
        TEAM,
        reads("s3://team-a/x", "s3://team-b/x"),
        "spec.data.train[1].source: s3://team-b/x is not allowed in namespace {namespace}; use a source of its list "
        "(s3://team-a/, hf://org, s3://shared), or ask whoever may edit the Namespace to extend the annotation "
        + SOURCES,
    ),
    (
        "a bucket whose name begins alike",
        TEAM,
        reads("s3://shared-by-others/x"),
        "s3://shared-by-others/x is not allowed",
    ),
    (
        "an owner whose name begins alike",
        TEAM,
        reads("s3://shared/x", model="hf://organic/m"),
        "spec.model.source: hf://organic/m",
    ),
    ("another model", TEAM, reads("s3://shared/x", model="pvc://claim/m"), "spec.model.source: pvc://claim/m is not"),
    (
        "validation",
        TEAM,
        reads(model="hf://org/m") | data(validation="s3://x-y/v"),
        "spec.data.validation.source: s3://x-y",
    ),
    ("test", TEAM, reads(model="hf://org/m") | data(test="s3://x-y/v"), "spec.data.test.source: s3://x-y/v"),
    ("replay", TEAM, reads(model="hf://org/m") | data(replay="s3://x-y/v"), "spec.data.replay.source: s3://x-y/v"),
    (
        "out-of-domain data",
        TEAM,
        reads("s3://shared/x") | {"evaluation": {"outOfDomain": {"source": "s3://x-y/o"}}},
        "spec.evaluation.outOfDomain.source: s3://x-y/o",
    ),
    (
        "an empty list: nothing",
        {SOURCES: ""},
        reads("s3://team-a/x"),
        "spec.model.source: s3://team-a/model is not allowed",
    ),
    ("a list of sources is none of storage", TEAM, reads("s3://shared/x") | writes("s3://elsewhere/x"), ""),
    ("storage of the list", {STORAGE: "s3://team-a/out"}, writes("s3://team-a/out/x"), ""),
    (
        "storage beside the list",
        {STORAGE: "s3://team-a/out"},
        writes("s3://team-a/other"),
        "spec.output.storage.uri: s3://team-a/other is not allowed in namespace {namespace}; leave output.storage out",
    ),
    ("the pool's storage needs no list", {STORAGE: ""}, {}, ""),
    (
        "the bucket's name at another service",
        {STORAGE: "s3://team-a/"},
        writes("s3://team-a/x", endpoint="https://evil.example"),
        "spec.output.storage.endpoint: https://evil.example is not allowed in namespace {namespace}",
    ),
    ("a service of the list", {STORAGE: "s3://a-b", ENDPOINTS: f"{MINIO}"}, writes("s3://a-b/x", endpoint=MINIO), ""),
]


@pytest.fixture
def policy(installed: Cluster, namespace: str) -> Cluster:
    in_force(installed, namespace, job(**reads("file:///x")), "file://")
    return installed


def annotate(cluster: Cluster, namespace: str, annotations: dict[str, str], until: Any) -> None:
    """Set the lists; the API server's view of the Namespace may be a moment old, so wait until it shows."""
    patch = json.dumps({"metadata": {"annotations": annotations}})
    cluster.kubectl("patch", "namespace", namespace, "--type=merge", "-p", patch)
    wait_for(until, 60, "the answer that the new annotations ask for")


@pytest.mark.parametrize(("lists", "sections", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_jobs(policy: Cluster, namespace: str, lists: dict[str, str], sections: dict[str, Any], words: str) -> None:
    admin = Person(policy, namespace)
    wanted = words.format(namespace=namespace)

    def answered() -> bool:
        said = admin.create(job(**sections))
        return wanted in said if wanted else not said

    annotate(policy, namespace, lists, answered)
    assert answered(), admin.create(job(**sections))


ADAPTERS: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("no list", {}, {"uri": "s3://any/x", "endpoint": MINIO}, ""),
    ("a file", {}, {"uri": "file:///x"}, "spec.storage.uri: file:// works only without a cluster"),
    (
        "beside the list",
        {STORAGE: "s3://team-a/"},
        {"uri": "s3://team-b/x"},
        "spec.storage.uri: s3://team-b/x is not allowed",
    ),
    ("of the list", {STORAGE: "s3://team-a/"}, {"uri": "s3://team-a/x"}, ""),
    (
        "another service",
        {STORAGE: "s3://team-a/"},
        {"uri": "s3://team-a/x", "endpoint": MINIO},
        "spec.storage.endpoint: https://minio.storage:9000 is not allowed",
    ),
]


@pytest.mark.parametrize(
    ("lists", "storage", "words"), [case[1:] for case in ADAPTERS], ids=[case[0] for case in ADAPTERS]
)
def test_adapters(policy: Cluster, namespace: str, lists: dict[str, str], storage: dict[str, Any], words: str) -> None:
    admin = Person(policy, namespace)

    def answered() -> bool:
        said = admin.create(adapter(storage=storage))
        return words in said if words else not said

    annotate(policy, namespace, lists, answered)
    assert answered(), admin.create(adapter(storage=storage))


@pytest.mark.parametrize("role", ["edit", "admin", "finetune-author", "finetune-policy-owner"])
def test_the_lists_are_out_of_reach_of_a_namespaces_people(policy: Cluster, namespace: str, role: str) -> None:
    policy.kubectl("create", "rolebinding", "person", f"--clusterrole={role}", f"--user={role}er", "-n", namespace)
    for verb in ("update", "patch"):
        answer = policy.kubectl(
            *("auth", "can-i", verb, f"namespace/{namespace}", "-n", namespace), user=f"{role}er", check=False
        )
        assert answer.stdout.strip() == "no"
