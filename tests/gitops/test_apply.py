"""Applying twice changes nothing, Git and cluster stay alike while the operator works, and spec is its owner's."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.validation import accepted_values
from finetune_operator.field_manager import PREFIX
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.operator_process import GROUPS, SERVICE_ACCOUNT
from tests.cluster.harness.runs import Runs
from tests.cluster.harness.waiting import wait_for
from tests.gitops.judges import argo_differences
from tests.gitops.tools import WAYS, Object, apply, diff, owned, read

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests" / "contract" / "corpus" / "good"
CREATED = {"adapters", "adapterversions"}
"""Kinds of ours of which the operator makes objects."""
every_way = pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS.keys())


def support_triage(namespace: str) -> Object:
    """The example as a team would commit it: the same job with its files in S3."""
    text = (ROOT / "examples" / "support-triage" / "finetunejob.yaml").read_text()
    job: Object = accepted_values(text.replace("file://", "s3://team-a/"))[0]
    job["metadata"]["namespace"] = namespace
    job["spec"]["compute"]["pool"] = namespace
    return job


def whole(name: str, namespace: str) -> Object:
    """A file of the corpus that uses every field of its kind."""
    manifest: Object = accepted_values((GOOD / name).read_text(encoding="utf-8"))[0]
    manifest["metadata"].pop("namespace", None)
    if manifest["kind"] == "GPUPool":
        # Another test's jobs must not meet a second default pool.
        manifest["metadata"]["name"] = f"{namespace}-whole"
        manifest["spec"]["default"] = False
    else:
        manifest["metadata"]["namespace"] = namespace
    return manifest


def seen(runs: Runs, manifest: Object) -> Object:
    """The object once the operator has looked at this generation of it."""

    def reached() -> Object | None:
        stored = read(runs.cluster, manifest)
        done = stored.get("status", {}).get("observedGeneration") == stored["metadata"]["generation"]
        return stored if done and stored.get("status", {}).get("reason") != "Accepted" else None

    stored: Object = runs.wait(reached, f"{manifest['kind']} to be looked at")
    return stored


def identity(stored: Object) -> tuple[str, int, int]:
    """What applying again must not change."""
    return (
        stored["metadata"]["resourceVersion"],
        stored["metadata"]["generation"],
        stored.get("status", {}).get("run", 0),
    )


@pytest.fixture
def pool_removed(runs: Runs) -> Iterator[None]:
    yield
    runs.cluster.kubectl("delete", "gpupool", f"{runs.namespace}-whole", "--ignore-not-found")


@every_way
@pytest.mark.usefixtures("pool_removed")
@pytest.mark.parametrize(
    "source",
    [
        "support-triage",
        "job-with-every-section.yaml",
        "adapter-with-every-section.yaml",
        "pool-with-every-section.yaml",
    ],
)
def test_applying_twice_changes_nothing(operated: Runs, source: str, flags: tuple[str, ...]) -> None:
    """No write, no generation, no run; and the operator's own writes are no difference."""
    manifest = support_triage(operated.namespace) if source == "support-triage" else whole(source, operated.namespace)
    apply(operated.cluster, manifest, *flags)
    first = seen(operated, manifest)
    assert diff(operated.cluster, manifest, *flags) == ""
    assert argo_differences([(manifest, first)]) == [""]
    said = apply(operated.cluster, manifest, *flags)
    assert said.strip().endswith("serverside-applied" if flags else "unchanged")
    assert identity(read(operated.cluster, manifest)) == identity(first)


@pytest.mark.parametrize("file", sorted(GOOD.glob("job-*.yaml")), ids=lambda file: file.stem)
def test_no_spec_is_written_differently_than_it_is_stored(operated: Runs, file: Path) -> None:
    """Defaults, numbers and quantities: a first apply and a second leave the same object, in every way."""
    # An admission policy refuses files of this machine in a cluster.
    text = re.sub(r"file://[/.]*", "s3://team-a/", file.read_text(encoding="utf-8"))
    manifest: Object = accepted_values(text)[0]
    if "name" not in manifest["metadata"]:
        manifest["metadata"] = {"name": "generated"}
    manifest["metadata"]["namespace"] = operated.namespace
    for flags in WAYS.values():
        apply(operated.cluster, manifest, *flags)
        first = seen(operated, manifest)
        assert diff(operated.cluster, manifest, *flags) == ""
        apply(operated.cluster, manifest, *flags)
        assert identity(read(operated.cluster, manifest)) == identity(first), flags


def test_a_finished_job_does_not_differ_from_git_and_applying_it_starts_nothing(operated: Runs) -> None:
    manifest = support_triage(operated.namespace)
    adapter = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Adapter",
        "metadata": {"name": "support-triage", "namespace": operated.namespace},
        "spec": {"storage": {"uri": "s3://bucket/store"}, "owner": "team-a", "policy": {"approvals": {"required": 1}}},
    }
    git = [adapter, manifest]
    for item in git:
        apply(operated.cluster, item, *WAYS["Argo CD"])
    operated.succeed_from("prepare", name="support-triage")
    operated.wait(
        lambda: operated.objects("adapters")[0].get("status", {}).get("versions") == 1,
        "the Adapter to know its version",
    )
    before = [identity(read(operated.cluster, item)) for item in git]
    for flags in (WAYS["Argo CD"], WAYS["Flux"]):
        for item in git:
            assert diff(operated.cluster, item, *flags) == ""
    assert argo_differences([(item, read(operated.cluster, item)) for item in git]) == ["", ""]
    edited = copy.deepcopy(manifest)
    edited["spec"]["training"]["epochs"] = 9
    [difference] = argo_differences([(edited, read(operated.cluster, manifest))])
    assert json.loads(difference)["spec"]["training"]["epochs"] == 9
    for item in git:
        apply(operated.cluster, item, *WAYS["Argo CD"])
    assert [identity(read(operated.cluster, item)) for item in git] == before
    assert operated.status("support-triage").run == 1
    assert len(operated.jobs()) == 5


def test_the_operator_owns_nothing_but_status(operated: Runs) -> None:
    """By managedFields: the whole object of what it makes, status and nothing else of what a user wrote."""
    operated.apply()
    operated.succeed_from("prepare")
    operated.wait(lambda: operated.objects("adapterversions")[0].get("status", {}).get("phase"), "the version's status")
    place = {"namespace": operated.namespace}
    job = read(operated.cluster, {"kind": "FineTuneJob", "metadata": {"name": "support", **place}})
    assert owned(job, PREFIX) == {"status"}
    assert "spec" in owned(job, "kubectl")
    version = read(operated.cluster, {"kind": "AdapterVersion", "metadata": {"name": "triage-v1", **place}})
    assert owned(version, PREFIX) == {"metadata", "spec", "status"}


def test_the_operator_never_writes_an_object_it_did_not_make(operated: Runs) -> None:
    """By the API server's audit log of this whole session: every write to our kinds is a creation or a status."""
    operated.apply()
    operated.succeed_from("prepare")
    if not hasattr(operated.cluster, "audit_events"):
        pytest.skip("a given cluster has no audit log here")
    writes = {
        (event["verb"], event["objectRef"]["resource"], event["objectRef"].get("subresource", ""))
        for event in operated.cluster.audit_events(SERVICE_ACCOUNT)
        if event["verb"] not in ("get", "list", "watch")
        and event.get("objectRef", {}).get("apiGroup") == "finetune.dev"
    }
    assert ("patch", "finetunejobs", "status") in writes
    main = {(verb, resource) for verb, resource, subresource in writes if not subresource}
    assert main <= {("create", resource) for resource in CREATED}
    assert {verb for verb, _, subresource in writes if subresource} == {"patch"}
    assert {subresource for _, _, subresource in writes if subresource} == {"status"}


def test_the_api_server_would_not_let_it_either(operated: Runs) -> None:
    operated.apply(suspend=True)
    for verb in ("update", "patch", "delete"):
        said = operated.cluster.kubectl(
            *("auth", "can-i", verb, "finetunejobs.finetune.dev", "-n", operated.namespace),
            user=SERVICE_ACCOUNT,
            groups=GROUPS,
            check=False,
        )
        assert said.stdout.strip() == "no"


@pytest.fixture
def recording(installed: Cluster) -> Iterator[Cluster]:
    """The cluster with the component that records a job's author."""
    component = ROOT / "manifests" / "components" / "four-eyes" / "record-author.yaml"
    installed.kubectl("apply", "--server-side", "-f", component)
    yield installed
    installed.kubectl("delete", "-f", component)


@every_way
def test_the_recorded_author_is_no_difference(recording: Cluster, operated: Runs, flags: tuple[str, ...]) -> None:
    """Git does not have the annotation, so no tool looks at it; applying again neither removes nor changes it."""
    probe = support_triage(operated.namespace)
    probe["metadata"]["name"] = "probe"

    def recorded() -> bool:
        recording.kubectl("delete", "ftj", "probe", "-n", operated.namespace, "--ignore-not-found")
        apply(recording, probe, *flags)
        return AUTHOR in read(recording, probe)["metadata"].get("annotations", {})

    wait_for(recorded, 60, "the policy to be in force")
    manifest = support_triage(operated.namespace)
    apply(recording, manifest, *flags)
    first = seen(operated, manifest)
    assert first["metadata"]["annotations"][AUTHOR] == "admin"
    assert diff(recording, manifest, *flags) == ""
    assert argo_differences([(manifest, first)]) == [""]
    apply(recording, manifest, *flags)
    assert identity(read(recording, manifest)) == identity(first)


AUTHOR = "finetune.dev/requested-by"


def columns(runs: Runs, plural: str, *flags: str) -> dict[str, Any]:
    """One object as `kubectl get` prints it: column -> text."""
    lines = runs.cluster.kubectl("get", plural, "-n", runs.namespace, *flags).stdout.splitlines()
    heads = [(head, lines[0].index(head)) for head in lines[0].split("  ") if head.strip()]
    names = [(head.strip(), lines[0].index(head.strip())) for head, _ in heads]
    ends = [*[start for _, start in names[1:]], None]
    return {name: lines[1][start:end].strip() for (name, start), end in zip(names, ends, strict=True)}


def test_kubectl_waits_and_prints_what_happened(operated: Runs) -> None:
    """`kubectl wait` for each outcome, and columns that follow a version to its release and back."""
    wait = ("wait", "-n", operated.namespace, "--timeout=240s")
    operated.apply()
    operated.succeed_from("prepare")
    operated.cluster.kubectl(*wait, "--for=condition=Complete", "ftj/support", timeout_s=270)
    operated.wait(lambda: operated.objects("adapterversions")[0].get("status", {}).get("phase"), "the version's status")
    assert columns(operated, "adpv")["CHANNELS"] == ""
    wide = columns(operated, "ftj", "-o", "wide")
    assert (wide["PHASE"], wide["PROGRESS"], wide["VERSION"], wide["VERDICT"], wide["REASON"]) == (
        "Succeeded",
        "5/5",
        "triage-v1",
        "Passed",
        "AwaitingApproval",
    )
    assert "waits for approval" in wide["MESSAGE"]
    # Not the author: another test may have installed the component that records who that is.
    decision = '{"spec": {"decisions": [{"by": "ada", "decision": "%s"}]}}'
    patch = ("patch", "adpv", "triage-v1", "-n", operated.namespace, "--type=merge", "-p")
    operated.cluster.kubectl(*patch, decision % "approve", user="ada", groups=("system:masters",))
    released = operated.cluster.kubectl(*wait, "--for=condition=Released", "ftj/support", timeout_s=270, check=False)
    assert released.returncode == 0, released.stderr + operated.log()
    operated.cluster.kubectl(*wait, "--for=condition=Served", "adapter/triage", timeout_s=270)
    assert columns(operated, "adpv")["CHANNELS"] == "stable"
    wide = columns(operated, "ftj", "-o", "wide")
    assert (wide["REASON"], wide["MESSAGE"]) == ("Released", "triage@v1 is served by stable")
    assert operated.status().next_step == ""
    operated.cluster.kubectl(*patch, decision % "reject", user="ada", groups=("system:masters",))
    operated.cluster.kubectl(*wait, "--for=condition=Released=False", "ftj/support", timeout_s=270)
    operated.wait(lambda: operated.status().reason == "Rejected", "the job to say that its version was rejected")
    assert columns(operated, "adpv")["CHANNELS"] == ""

    operated.apply("refused", compute={"gpusPerNode": 8}, training={"globalBatchSize": 12})
    operated.cluster.kubectl(*wait, "--for=condition=Failed", "ftj/refused", timeout_s=270)
