"""What the stories share: one node for all of them, one operator per module, one namespace and pool per test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.kubelet import PodPlayer
from tests.cluster.harness.operator_process import SERVICE_ACCOUNT, OperatorProcess
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.command_line import PEOPLE, ROLES, People
from tests.cluster.scenarios.story import NODE_LABEL, Scene

NODE = "played"


@pytest.fixture(scope="session")
def node(player: PodPlayer) -> Iterator[str]:
    """A machine large enough for all stories."""
    player.add_node(NODE, gpus=512, cpu="4000", memory="32Ti", labels={NODE_LABEL: "played"})
    yield NODE
    player.remove_node(NODE)


@pytest.fixture(scope="module")
def operator(installed: Cluster, request: pytest.FixtureRequest) -> Iterator[OperatorProcess]:
    """The operator, leading; one process for the stories of a module."""
    process = OperatorProcess(installed, name=f"operator-{request.module.__name__.rsplit('.', 1)[-1]}", progress=True)
    yield process.started().leading()
    process.stop()


@pytest.fixture
def replica(installed: Cluster) -> Iterator[Callable[..., OperatorProcess]]:
    """Makes replicas that are not started yet, for a test that kills them; all are killed with the test."""
    made: list[OperatorProcess] = []

    def make(user: str = SERVICE_ACCOUNT) -> OperatorProcess:
        made.append(OperatorProcess(installed, name=f"replica-{secrets.token_hex(3)}", user=user))
        return made[-1]

    yield make
    for process in made:
        process.kill()


@pytest.fixture
def bare_scene(installed: Cluster, player: PodPlayer, node: str, namespace: str) -> Iterator[Scene]:
    """A namespace under Pod Security `restricted`, without a pool."""
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    client.CoreV1Api(installed.api()).patch_namespace(namespace, labels)
    scene = Scene(installed, player, namespace)
    yield scene
    scene.remove_pool()


@pytest.fixture
def scene(bare_scene: Scene) -> Scene:
    """A namespace with a GPUPool of its name."""
    bare_scene.make_pool()
    return bare_scene


@pytest.fixture
def people(scene: Scene, tmp_path: Path) -> Iterator[People]:
    """Who use the command line in the scene's namespace, with their roles in force."""
    for user, role in ROLES.items():
        scene.cluster.kubectl(
            *("create", "rolebinding", user, "-n", scene.namespace, f"--clusterrole={role}", f"--user={user}")
        )
    made = People(scene, tmp_path)

    def effective() -> bool:
        check = ("auth", "can-i", "list", "finetunejobs.finetune.dev", "-n", scene.namespace)
        return all(
            scene.cluster.kubectl(*check, user=user, groups=PEOPLE, check=False).returncode == 0 for user in ROLES
        )

    wait_for(effective, 60, "the roles to be in force")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
