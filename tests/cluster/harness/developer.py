"""A cluster for a developer, behind `make cluster`: it outlives the shell, until `make cluster-down`.

``python -m tests.cluster.harness.developer up|down|load`` from the repository root. One cluster per cache folder: its
supervisor is a process of its own that holds a lock for as long as it lives, so that nothing here trusts a stale file.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .binaries import BuildError, cache_root, ensure_module
from .controlplane import ControlPlane
from .kwok import Kwok
from .node import slots
from .node.cluster import NodeCluster
from .node.requirements import missing_for_node
from .waiting import NotInTime, wait_for

DEFAULTS = {"nodes": 1, "gpus": 8, "kwok_nodes": 0}
MODULES = ("etcd", "kubernetes", "coredns", "pause", "kwok")
_START_DEADLINE_S = 600
_STOP_DEADLINE_S = 60


class Refused(RuntimeError):
    """What was asked for cannot be done; the message says why and what to do."""


class State:
    """The folder in which a developer's cluster says where it is."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made when a cluster starts."""
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.log = folder / "supervisor.log"
        self._facts = folder / "state.json"

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock of the folder; false where another process has it and ``wait`` is false."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    @property
    def supervised(self) -> bool:
        """Whether a supervisor lives."""
        with self.lock("supervisor", wait=False) as free:
            return not free

    def read(self) -> dict[str, Any]:
        """What the supervisor wrote when everything was ready; empty before."""
        return json.loads(self._facts.read_text()) if self._facts.exists() else {}

    def write(self, **facts: Any) -> None:
        """Write it, in one piece."""
        new = self._facts.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.replace(self._facts)

    def clear(self) -> None:
        """Forget the cluster; its log stays."""
        for path in (self._facts, self.kubeconfig):
            path.unlink(missing_ok=True)


def up(state: State, asked: dict[str, int]) -> None:
    """Start a cluster unless one runs, and wait until it is ready.

    Args:
        state: where it is noted.
        asked: what was asked for of ``DEFAULTS``; a cluster that runs must have it.

    Raises:
        Refused: a cluster of another shape runs, no node is possible here, or the start failed.
    """
    wanted = DEFAULTS | asked
    with state.lock("up", wait=True):
        if state.supervised:
            have = state.read()["wanted"]
            if different := {name for name, value in asked.items() if have[name] != value}:
                shape = ", ".join(f"{name.upper()}={have[name]}" for name in sorted(different))
                raise Refused(f"one with {shape} runs: `make cluster-down` first")
            _say("runs already")
            return
        if wanted["nodes"] and (reason := missing_for_node()):
            raise Refused(f"{reason}; NODES=0 makes a cluster without a node")
        state.clear()
        for module in MODULES:  # what takes minutes is done where it is seen
            ensure_module(module)
        with state.log.open("wb") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "--state", state.folder, "supervise", json.dumps(wanted)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(
            lambda: state.read() or supervisor.poll() is not None,
            _START_DEADLINE_S,
            "the cluster to be ready",
            context=state.log.read_text,
        )
        if supervisor.poll() is not None:
            raise Refused(f"the cluster did not start; the end of {state.log}:\n{state.log.read_text()[-3000:]}")
        _say("ready")


def down(state: State) -> None:
    """End the cluster and leave nothing of it on the machine; harmless where none runs."""
    with state.lock("up", wait=True):
        ran = state.supervised
        if ran:
            pid = int((state.folder / "supervisor.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            try:
                wait_for(lambda: not state.supervised, _STOP_DEADLINE_S, "the supervisor to end")
            except NotInTime:
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda: not state.supervised, _STOP_DEADLINE_S, "the killed supervisor to end")
        state.clear()
        if os.geteuid() == 0:
            slots.sweep()  # what a supervisor left that was killed
        _say("ended" if ran else "no cluster runs")


def load(state: State, archives: list[Path]) -> None:
    """Import OCI archives into every node.

    Raises:
        Refused: no cluster with a node runs, or an archive is not one.
    """
    sockets = state.read().get("containerd", []) if state.supervised else []
    if not sockets:
        raise Refused("no cluster with a node runs: `make cluster` starts one")
    for archive in archives:
        for socket in sockets:
            command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", str(archive)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Refused(f"{archive} could not be imported: {(done.stderr or done.stdout).strip()}")
        _say(f"loaded {archive}")


def supervise(state: State, nodes: int, gpus: int, kwok_nodes: int) -> None:
    """Be the cluster until SIGTERM; everything started here dies with this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.lock("supervisor", wait=True))  # others hold it while they look
        (state.folder / "supervisor.pid").write_text(str(os.getpid()))
        cluster = stack.enter_context(NodeCluster() if nodes else ControlPlane(node_lifecycle=True))
        made = [cluster.add_node(gpus=gpus) for _ in range(nodes)] if isinstance(cluster, NodeCluster) else []
        if kwok_nodes:
            stack.enter_context(Kwok(cluster)).add_nodes(kwok_nodes, gpus=gpus, tainted=bool(nodes))
        shutil.copyfile(cluster.admin_kubeconfig, state.kubeconfig)
        state.kubeconfig.chmod(0o600)
        state.write(
            wanted={"nodes": nodes, "gpus": gpus, "kwok_nodes": kwok_nodes},
            host_address=cluster.host_address if isinstance(cluster, NodeCluster) else None,
            containerd=[str(node.containerd_socket) for node in made],
            logs=str(cluster.work_dir),
        )
        while True:
            signal.pause()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("--state", type=Path, default=cache_root() / "cluster", help="the folder that tells of it")
    verbs = parser.add_subparsers(dest="verb", required=True)
    starts = verbs.add_parser("up", help="start a cluster, or say where it is")
    starts.add_argument("--nodes", type=int, choices=range(5), help="nodes that run containers (1)")
    starts.add_argument("--gpus", type=_count, help="GPUs each node says it has (8)")
    starts.add_argument("--kwok-nodes", type=_count, help="further nodes that run nothing, for scale (0)")
    verbs.add_parser("down", help="end it")
    verbs.add_parser("load", help="import OCI archives").add_argument("archives", type=Path, nargs="+")
    verbs.add_parser("supervise").add_argument("wanted", type=json.loads)
    options = parser.parse_args()
    state = State(options.state)
    try:
        if options.verb == "up":
            up(state, {name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None})
            facts = state.read()
            _say(f"logs in {facts['logs']}")
            if facts["host_address"]:
                _say(f"pods reach servers of this machine at {facts['host_address']}")
            print(f"export KUBECONFIG={state.kubeconfig}")
        elif options.verb == "down":
            down(state)
        elif options.verb == "load":
            load(state, options.archives)
        else:
            supervise(state, **options.wanted)
    except (Refused, BuildError, NotInTime, slots.NoSlot) as error:
        sys.exit(f"cluster: {error}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of things")
    return int(text)


def _say(line: str) -> None:
    print(f"cluster: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
