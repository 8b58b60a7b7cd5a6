"""A machine inside the machine: namespaces, control groups and a network cable of its own, ended by one SIGKILL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.harness.process import Process
from tests.cluster.harness.waiting import wait_for

from . import cgroups, network
from .slots import Slot

_HERE = Path(__file__).parent
_DEADLINE_S = 60
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_SYSCTL = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/route_localnet": "1",  # kube-proxy: node ports on the loopback address
}


class Machine:
    """Empty but for its first process; ``process`` describes programs that run in it.

    It dies with the process that started it: the kernel kills `unshare`, with it the first process of the namespace,
    and with that everything in it; interfaces and mounts go with their namespaces.

    Args:
        slot: whose names and addresses it uses.
        index: its number among the slot's machines.
        name: its host name.
        work: its folder, seen at the same path inside.
        read_only: further folders it sees.
    """

    def __init__(self, slot: Slot, index: int, name: str, work: Path, read_only: Sequence[Path]) -> None:
        self.slot = slot
        self.index = index
        self.name = name
        self.work = work
        self.address = slot.node_address(index)
        self.pods_range = slot.pod_range(index)
        self._group = slot.node_name(index)
        self._read_only = read_only
        self._joins: list[Path] = []
        self.pid = 0
        """Of its first process, as the test sees it."""
        self._holder: Process | None = None

    def start(self, peers: Sequence[Machine] = ()) -> None:
        """Make it and connect it to the host and to other machines of the slot."""
        ready = self.work / "ready"
        ready.unlink(missing_ok=True)
        root = self.work / "root"
        root.mkdir(exist_ok=True)
        hierarchies = [["", ""] if item.unified else [item.path.name, item.options] for item in cgroups.hierarchies()]
        plan = {
            "name": self.name,
            "root": str(root),
            "read_only": [str(path) for path in self._read_only],
            "writable": [str(self.work)],
            "hierarchies": hierarchies,
            "sysctl": _SYSCTL,
            "ready": str(ready),
        }
        init = [sys.executable, "-I", _HERE / "init.py", json.dumps(plan)]
        unshare = ["unshare", *_NAMESPACES, "--propagation", "private", "--fork", "--kill-child", *init]
        joins = cgroups.make(self._group)
        self._holder = Process("node", _entering(joins, unshare), self.work / "init.log")
        self._holder.start()
        self.pid = wait_for(self._first_process, _DEADLINE_S, "the node's first process", poll_s=0.01)
        network.connect(self.pid, self._group, self.slot.host_address, self.address, self.pods_range)
        for peer in peers:
            network.join(self._end(peer), peer._end(self))
        wait_for(
            lambda: self.check() and ready.exists(),
            _DEADLINE_S,
            "the node's file system",
            poll_s=0.01,
            context=self._holder.log_tail,
        )
        self._joins = cgroups.settle(self._group, self._holder.pid)

    @property
    def running(self) -> bool:
        """Whether it was started and has not been stopped."""
        return self._holder is not None and self._holder.running

    def check(self) -> bool:
        """True while it lives; raises ProcessDied where it ended by itself."""
        return self._holder is not None and self._holder.check()

    def stop(self) -> None:
        """End it as a power cut does: every process is killed at once, the cable is gone. Its folder stays."""
        if self._holder is not None:
            self._holder.kill()
        cgroups.kill(self._group)
        network.remove(self._group)
        cgroups.remove(self._group)
        self.pid = 0

    def command(self, *command: str | Path) -> list[str | Path]:
        """The command that runs a command in the machine."""
        return _entering(self._joins, self._inside(command))

    def process(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Process:
        """A program in the machine, not started yet; its log is in the machine's folder."""
        return Process(f"{name} of {self.name}", self.command(*command), self.work / f"{name}.log", env)

    def run(self, *command: str | Path, timeout_s: float = 60) -> str:
        """Run a command in the machine to its end; its output.

        Raises:
            RuntimeError: it failed; the message is what it said.
        """
        done = subprocess.run(self._inside(command), capture_output=True, text=True, check=False, timeout=timeout_s)
        if done.returncode != 0:
            said = done.stderr or done.stdout
            raise RuntimeError(f"{' '.join(map(str, command))} in {self.name} ended with {done.returncode}: {said}")
        return done.stdout

    def _inside(self, command: Sequence[str | Path]) -> list[str | Path]:
        return ["nsenter", "--target", str(self.pid), *_NAMESPACES, "--", *command]

    def _first_process(self) -> int:
        self.check()
        assert self._holder is not None
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _end(self, peer: Machine) -> tuple[int, str, str, str]:
        return self.pid, f"node{peer.index}", self.address, self.pods_range


def _entering(joins: Sequence[Path], command: Sequence[str | Path]) -> list[str | Path]:
    return [sys.executable, "-I", _HERE / "enter.py", ":".join(map(str, joins)), *command]
