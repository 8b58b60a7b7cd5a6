"""However a cluster ends, nothing of it stays on the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.harness.node import cgroups, network, slots
from tests.cluster.harness.node.requirements import missing_for_node
from tests.cluster.harness.node.slots import Slot
from tests.cluster.harness.waiting import wait_for

DEADLINE_S = 180

# A cluster with a running pod, until the end of the input.
PROGRAM = """\
import json, pathlib, sys
from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.pods import Pods
with NodeCluster() as cluster:
    node = cluster.add_node(gpus=0)
    node.import_image(pathlib.Path(sys.argv[1]))
    pods = Pods(cluster, "default", "localhost/probe:1", context=node.logs)
    pods.run("works", "wait")
    pods.running("works")
    print(json.dumps({"slot": cluster.slot.number, "work_dir": str(cluster.work_dir)}), flush=True)
    sys.stdin.read()
"""


@dataclass
class Traces:
    """What can be seen of a cluster from outside."""

    slot: Slot
    work_dir: str
    pid: int

    def processes(self) -> list[str]:
        """Command lines of processes that are in its control groups or use its folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_text().replace("\0", " ").strip()
                groups = (entry / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if self.work_dir in command or (f"/{self.slot.name}" in groups and not self.is_anothers()):
                found.append(command or entry.name)
        return found

    def all(self) -> dict[str, object]:
        """Everything, by kind; empty values where nothing is left.

        A free slot may be another cluster's a moment later: then what goes by the slot's name is not ours.
        """
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.work_dir in line]
        groups = [str(path) for item in cgroups.hierarchies() for path in item.path.glob(f"{self.slot.name}*")]
        addresses = network.ip("address", "show").count(self.slot.host_address)
        by_slot = {
            "control groups": groups,
            "interfaces": network.interfaces(self.slot.name),
            "addresses": addresses,
            "routes": network.overlaps(self.slot.network),
        }
        by_folder = {"processes": self.processes(), "mounts": mounts, "folder": os.path.exists(self.work_dir)}
        return by_folder if self.is_anothers() else by_folder | by_slot

    def is_anothers(self) -> bool:
        """Whether another process has claimed the slot meanwhile; it says so before it makes anything."""
        claim = (slots.RUN_DIR / f"slot-{self.slot.number}").read_text()
        return bool(claim) and json.loads(claim)["pid"] != self.pid


def interrupt(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)


def close_input(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.close()


@pytest.fixture
def started(probe_archive: Path) -> tuple[subprocess.Popen[str], Traces]:
    """A cluster in a process of its own."""
    if reason := missing_for_node():
        pytest.skip(reason)
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(probe_archive)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = json.loads(child.stdout.readline())
    traces = Traces(Slot(said["slot"]), said["work_dir"], child.pid)
    seen = traces.all()
    assert all(seen[kind] for kind in seen if kind != "mounts"), seen  # the mounts are in the node's namespace
    return child, traces


@pytest.mark.parametrize("end", [interrupt, close_input])
def test_nothing_stays_after_the_end_and_after_an_interruption(
    started: tuple[subprocess.Popen[str], Traces], end: Callable[[subprocess.Popen[str]], None]
) -> None:
    child, traces = started
    end(child)
    child.wait(DEADLINE_S)
    assert not any(traces.all().values()), traces.all()


def test_a_killed_cluster_ends_with_its_test_and_the_next_start_sweeps_what_stayed(
    started: tuple[subprocess.Popen[str], Traces],
) -> None:
    child, traces = started
    child.kill()
    child.wait(DEADLINE_S)
    wait_for(lambda: not traces.processes(), DEADLINE_S, "the processes to end", context=lambda: str(traces.all()))
    slots.sweep()
    assert not any(traces.all().values()), traces.all()


def test_two_claims_share_no_name_and_no_address() -> None:
    if reason := missing_for_node():
        pytest.skip(reason)
    first, second = slots.Claim.take(), slots.Claim.take()
    try:
        assert first.slot.name != second.slot.name
        assert not first.slot.network.overlaps(second.slot.network)
        assert network.overlaps(first.slot.network)
    finally:
        first.release()
        second.release()
    assert not network.overlaps(first.slot.network)


def test_clusters_that_start_at_the_same_moment_each_find_a_place() -> None:
    if reason := missing_for_node():
        pytest.skip(reason)
    with ThreadPoolExecutor(6) as threads:
        claims = list(threads.map(lambda _: slots.Claim.take(), range(6)))
    try:
        assert len({claim.slot.number for claim in claims}) == 6
    finally:
        for claim in claims:
            claim.release()


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", [("/sys/fs/cgroup", "", True)]),
        (
            "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
            "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            [
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct", False),
                ("/sys/fs/cgroup/systemd", "none,name=systemd", False),
            ],
        ),
        ("23 27 0:22 / /sys rw - sysfs sysfs rw", []),
    ],
)
def test_the_control_groups_of_a_machine_are_found(mounts: str, found: list[tuple[str, str, bool]]) -> None:
    hierarchies = cgroups.hierarchies(mounts)
    assert [(str(item.path), item.options, item.unified) for item in hierarchies] == found
