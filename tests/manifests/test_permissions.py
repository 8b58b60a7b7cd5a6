"""The rights of the operator, against what it really asks of an API server that keeps an audit log.

A story with every accident that makes the operator use a right: both overlays must grant exactly what was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from kubernetes import client

from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.builders.names import job_name
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kubelet import PodPlayer
from tests.cluster.harness.kueue import workload_crd
from tests.cluster.harness.operator_process import GROUPS, SERVICE_ACCOUNT, OperatorProcess
from tests.cluster.harness.policies import wait_for_policies
from tests.cluster.harness.progress_talk import Talk
from tests.cluster.harness.runs import NODE_LABEL, Runs, pool_manifest
from tests.cluster.harness.waiting import wait_for
from tests.manifests.rendering import OVERLAYS, ROOT, kustomized, objects, permissions

WATCHED = "team-a"
IMPLIED = frozenset({("finetune.dev", "finetunejobs/finalizers", "update")})
"""Asked for by admission (OwnerReferencesPermissionEnforcement) where it is on; no request uses it."""
FREE = frozenset({("authorization.k8s.io", "selfsubjectaccessreviews", "create")})
"""Granted to everybody by system:basic-user."""


@dataclass(frozen=True)
class Installation:
    """A control plane with one overlay installed, the operator under its rights, and a namespace to tell stories in."""

    plane: ControlPlane
    overlay: str
    rendered: dict[Any, dict[str, Any]]
    runs: Runs


@pytest.fixture(scope="module", params=["cluster-wide", "single-namespace"])
def installation(request: pytest.FixtureRequest) -> Iterator[Installation]:
    overlay = OVERLAYS / request.param
    rendered = objects(kustomized(overlay))
    [deployment] = [item for (_, kind, _, _), item in rendered.items() if kind == "Deployment"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    watched = [
        argument
        for place, name in enumerate(arguments)
        if name == "--namespace"
        for argument in (name, arguments[place + 1])
    ]
    with ControlPlane(audit=True) as plane:
        core = client.CoreV1Api(plane.api())
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=WATCHED)))
        plane.kubectl("apply", "--server-side", "-k", overlay)
        wait_for_policies(plane)
        plane.apply(workload_crd())
        player = PodPlayer(plane)
        player.add_node(WATCHED, gpus=8, labels={NODE_LABEL: WATCHED})
        plane.apply(pool_manifest(WATCHED))
        runs = Runs(plane, WATCHED, player)
        # A longer lease than the harness's: the story stops the process for a moment.
        extra = [*watched, "--lease-seconds", "30", "--audit-seconds", "2"]
        operator = OperatorProcess(plane, extra=extra, progress=True)
        runs.operators.append(operator)
        operator.started().leading()
        yield Installation(plane, request.param, rendered, runs)
        operator.kill()


def used(plane: ControlPlane) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of every request of the operator that is about objects."""
    found = set()
    for event in plane.audit_events(SERVICE_ACCOUNT):
        reference = event.get("objectRef")
        if reference is not None:
            name = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            found.add((reference.get("apiGroup", ""), name, event["verb"]))
    return found


def refused(plane: ControlPlane) -> list[str]:
    """Requests of the operator that the API server refused for want of a right."""
    return [
        f"{event['verb']} {event['requestURI']}"
        for event in plane.audit_events(SERVICE_ACCOUNT)
        if event.get("responseStatus", {}).get("code") in (401, 403)
    ]


def play_a_gang(runs: Runs) -> None:
    """From nothing to a version, with two training pods that meet through a Service; then everything is removed."""
    runs.apply("gang", "gang", compute={"nodes": 2, "gpusPerNode": 2}, ttlSecondsAfterFinished=0)
    for stage in ("prepare", "baseline"):
        runs.succeed(stage, name="gang")
    status = runs.begin("train", name="gang", count=2)
    runs.patch("gang", suspend=True)
    runs.wait_gone(status.job_name)
    runs.patch("gang", suspend=False)
    status = runs.begin("train", attempt=2, name="gang", count=2)
    for pod in runs.pods(status, 2):
        runs.player.succeed(pod, runs.report(pod))
    runs.succeed_from("evaluate", "gang")
    of_gang = {stage.job_name for stage in runs.status("gang").stages}
    runs.wait(
        lambda: not of_gang & {job.metadata.name for job in runs.jobs()},
        "the gang's Jobs to be removed after their time",
    )


def lose_a_node(runs: Runs) -> None:
    """A pod is being deleted and its node never confirms it; what follows takes the operator a minute."""
    runs.apply("lost", "lost")
    [pod] = runs.pods(runs.begin("prepare", name="lost"))
    runs.player.abandon(pod)
    client.CoreV1Api(runs.cluster.api()).delete_namespaced_pod(
        pod.metadata.name, runs.namespace, grace_period_seconds=1
    )


def adopt_a_child(runs: Runs) -> None:
    """The answer to the creation of a Job and a Service was lost: both exist and are the run's own."""
    job = runs.apply("adopted", "adopted", suspend=True)
    runs.wait_phase("Suspended", "adopted")
    name = job_name("adopted", job.metadata.uid, 1, "prepare", 1)
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": "adopted"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "runner:1"}]}
    runs.cluster.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "namespace": runs.namespace,
                "ownerReferences": [{**owner, "uid": job.metadata.uid, "controller": True}],
            },
            "spec": {"suspend": True, "template": {"spec": pod}},
        }
    )
    runs.patch("adopted", suspend=False)
    runs.wait_stage("prepare", name="adopted")


def race_for_an_adapter(runs: Runs) -> None:
    """Several jobs ask for the same new Adapter at once: one creates it, the others read it."""
    [operator] = runs.operators
    operator.pause()
    for number in range(8):
        runs.apply(f"race-{number}", "shared")
    operator.resume()
    for number in range(8):
        runs.wait_stage("prepare", name=f"race-{number}")


def push_progress(runs: Runs) -> None:
    """A pod says how far it is."""
    [operator] = runs.operators
    assert operator.progress is not None
    runs.apply("told", "told")
    talk = Talk(runs, operator.progress, "prepare", name="told")
    runs.wait(lambda: talk.push(50).status == 202, "a push to be accepted")
    runs.wait(lambda: "50%" in runs.status("told").progress, "the progress that was pushed")


def edit_under_its_hands(
    runs: Runs, plural: str, name: str, wishes: Sequence[dict[str, Any]], until: Callable[[], bool]
) -> None:
    """Change an object back and forth, and label it while the operator writes its status, until a write came late."""
    custom = client.CustomObjectsApi(runs.cluster.api())
    edits = count()

    def patch_object(patch: dict[str, Any]) -> None:
        if plural == "gpupools":
            custom.patch_cluster_custom_object("finetune.dev", "v1alpha1", plural, name, patch)
        else:
            custom.patch_namespaced_custom_object("finetune.dev", "v1alpha1", runs.namespace, plural, name, patch)

    def edit() -> bool:
        number = next(edits)
        patches = [{"spec": wishes[number % len(wishes)]}]
        patches += [{"metadata": {"labels": {"edit": f"{number}-{label}"}}} for label in range(5)]
        for patch in patches:
            patch_object(patch)
        runs.player.finish_deletions(runs.namespace, 85)
        return until()

    wait_for(edit, 120, f"an edit of {plural} between the operator's look and its write", context=runs.log)


@pytest.mark.timeout(900)
def test_the_operator_has_exactly_the_rights_it_uses(
    installation: Installation, record_property: Callable[..., None]
) -> None:
    runs, plane = installation.runs, installation.plane
    lose_a_node(runs)
    adopt_a_child(runs)
    race_for_an_adapter(runs)
    runs.apply("edited", "edited", suspend=True)
    edit_under_its_hands(
        *(runs, "finetunejobs", "edited", [{"suspend": False}, {"suspend": True}]),
        lambda: ("finetune.dev", "finetunejobs", "get") in used(plane),
    )
    plane.apply(pool_manifest("edited"))
    edit_under_its_hands(
        *(runs, "gpupools", "edited", [{"nodeSelector": {NODE_LABEL: place}} for place in (WATCHED, "nowhere")]),
        lambda: ("finetune.dev", "gpupools", "get") in used(plane),
    )
    push_progress(runs)
    play_a_gang(runs)
    published = runs.status("gang").version
    assert published is not None
    edit_under_its_hands(
        *(runs, "adapterversions", published.name),
        [{"decisions": [{"by": "admin", "decision": decision}]} for decision in ("approve", "reject")],
        lambda: ("finetune.dev", "adapterversions", "get") in used(plane),
    )
    runs.wait(lambda: ("", "pods", "delete") in used(plane), "the lost pod to be removed", deadline_s=150)

    granted = permissions(installation.rendered)
    allowed = set.union(*granted.values())
    asked = used(plane) - FREE
    lines = [f"{group or 'core'}/{resource}: {verb}" for group, resource, verb in sorted(asked)]
    record_property(f"used with {installation.overlay}", lines)
    print(f"\nused with {installation.overlay}:", *lines, sep="\n  ")
    assert refused(plane) == []
    assert sorted(asked - allowed) == [], "used and not granted by the manifests"
    assert sorted(allowed - asked - IMPLIED) == [], "granted and never used"


def test_rights_beyond_namespaces_are_only_those_that_need_it(installation: Installation) -> None:
    resources = installation.plane.kubectl("api-resources", "--namespaced=false", "-o", "name").stdout.split()
    granted = permissions(installation.rendered)
    elsewhere = {kind_and_namespace: rights for kind_and_namespace, rights in granted.items() if kind_and_namespace[1]}
    for rights in elsewhere.values():
        assert not [right for right in rights if f"{right[1].split('/')[0]}.{right[0]}".rstrip(".") in resources]
    everywhere = granted["ClusterRoleBinding", ""]
    of_namespaces = {
        right for right in everywhere if f"{right[1].split('/')[0]}.{right[0]}".rstrip(".") not in resources
    }
    if installation.overlay == "single-namespace":
        assert of_namespaces == set(), "rights in every namespace"
        assert set(elsewhere) == {("RoleBinding", WATCHED), ("RoleBinding", "finetune-system")}
    else:
        assert of_namespaces
        assert set(elsewhere) == {("RoleBinding", "finetune-system")}


def test_both_overlays_grant_the_same() -> None:
    wide, single = (
        set.union(*permissions(objects(kustomized(OVERLAYS / overlay))).values())
        for overlay in ("cluster-wide", "single-namespace")
    )
    assert wide == single


def test_every_resource_of_the_roles_is_explained() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rights = set.union(*permissions(objects(kustomized(OVERLAYS / "cluster-wide"))).values())
    named = {resource.removesuffix("/status") for _, resource, _ in rights}
    assert sorted(resource for resource in named if f"`{resource}`" not in page) == []


@pytest.mark.parametrize("installation", ["single-namespace"], indirect=True)
def test_an_operator_of_one_namespace_leaves_the_others_alone(installation: Installation) -> None:
    plane = installation.plane
    core = client.CoreV1Api(plane.api())
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="team-b")))
    other = Runs(plane, "team-b", installation.runs.player)
    plane.apply(pool_manifest("team-b"))
    other.apply()
    installation.runs.apply("witness", "witness")
    installation.runs.wait_stage("prepare", name="witness")
    assert other.job().status == FineTuneJobStatus(observed_generation=-1), "as the API server made it"
    assert other.jobs() == []
    for verb, resource in (("list", "finetunejobs.finetune.dev"), ("create", "jobs.batch"), ("delete", "pods")):
        answer = plane.kubectl(
            *("auth", "can-i", verb, resource, "-n", "team-b"), user=SERVICE_ACCOUNT, groups=GROUPS, check=False
        )
        assert answer.stdout.strip() == "no"
