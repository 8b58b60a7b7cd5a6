"""`make cluster`: it stays, it is there once, and it goes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for

DEADLINE_S = 120


class Developer:
    """Somebody in a shell."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.cluster.harness.developer", "--state", str(self.state), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)

    def supervisor(self) -> int:
        return int((self.state / "supervisor.pid").read_text())

    def kubeconfig(self, said: subprocess.CompletedProcess[str]) -> Path:
        assert said.returncode == 0, said.stderr
        return Path(said.stdout.strip().removeprefix("export KUBECONFIG="))

    def kubectl(self, kubeconfig: Path, *args: str) -> str:
        with contextlib.closing(Cluster(kubeconfig)) as cluster:
            return cluster.kubectl(*args).stdout


@pytest.fixture
def developer(tmp_path: Path) -> Iterator[Developer]:
    person = Developer(tmp_path / "cluster")
    yield person
    person("down")


def test_a_cluster_stays_until_it_is_asked_to_go(developer: Developer) -> None:
    assert "no cluster" in developer("load", "image.tar").stderr
    kubeconfig = developer.kubeconfig(developer("up", "--nodes", "0"))
    first = developer.supervisor()
    developer.kubectl(kubeconfig, "create", "namespace", "kept")
    again = developer("up")
    assert developer.kubeconfig(again) == kubeconfig
    assert "runs already" in again.stderr
    assert developer.supervisor() == first
    developer.kubectl(kubeconfig, "get", "namespace", "kept")
    other = developer("up", "--kwok-nodes", "5")
    assert (other.returncode, other.stderr) == (1, "cluster: one with KWOK_NODES=0 runs: `make cluster-down` first\n")
    assert developer("down").stderr == "cluster: ended\n"
    wait_for(lambda: not Path("/proc", str(first)).exists(), DEADLINE_S, "the supervisor's end")
    assert not kubeconfig.exists()
    assert developer("down").stderr == "cluster: no cluster runs\n"


def test_a_cluster_that_was_killed_is_noticed_and_made_anew(developer: Developer) -> None:
    developer.kubeconfig(developer("up", "--nodes", "0"))
    first = developer.supervisor()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not Path("/proc", str(first)).exists(), DEADLINE_S, "the supervisor's end")
    kubeconfig = developer.kubeconfig(developer("up", "--nodes", "0", "--kwok-nodes", "3"))
    assert developer.supervisor() != first
    nodes = developer.kubectl(kubeconfig, "get", "nodes", "-o", "name").split()
    assert nodes == [f"node/kwok-{number}" for number in range(3)]


@pytest.mark.parametrize("args", [["--nodes", "9"], ["--gpus", "many"], ["--kwok-nodes", "-1"]])
def test_a_wrong_number_is_refused_by_its_name(developer: Developer, args: list[str]) -> None:
    said = developer("up", *args)
    assert said.returncode == 2
    assert f"argument {args[0]}" in said.stderr
