"""The control groups of a node: one child of the machine's in every hierarchy, made, filled and removed from outside.

Version 1 has a hierarchy per controller, version 2 one for all. The node sees its children as the roots
(`unshare --cgroup`), so that kubelet and runc work as on a machine of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness.waiting import wait_for

NEEDED = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"})
"""Controllers of version 1 without which the kubelet does not start."""

_KNOWN = NEEDED | {"hugetlb", "misc", "net_cls", "net_prio", "perf_event", "rdma"}
NEEDED_V2 = frozenset({"cpu", "cpuset", "memory", "pids"})
_NAMED = "name="
_DEADLINE_S = 30


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy: where it is, and the options that mount it again (empty: version 2)."""

    path: Path
    controllers: tuple[str, ...]

    @property
    def unified(self) -> bool:
        """Whether it is the hierarchy of version 2."""
        return not self.controllers

    @property
    def options(self) -> str:
        """What `mount -o` takes."""
        named = any(name.startswith(_NAMED) for name in self.controllers)
        return ",".join(("none", *self.controllers) if named else self.controllers)


def hierarchies(mounts: str | None = None) -> list[Hierarchy]:
    """Those the machine has mounted: version 2 alone where it is at /sys/fs/cgroup, else those of version 1.

    Args:
        mounts: the text of /proc/self/mountinfo (proc(5)).
    """
    found = []
    for line in (mounts or Path("/proc/self/mountinfo").read_text()).splitlines():
        first, last = line.split(" - ", 1)
        path = Path(first.split()[4])
        kind, _, options = last.split(" ", 2)
        if kind == "cgroup2" and path == Path("/sys/fs/cgroup"):
            return [Hierarchy(path, ())]
        if kind == "cgroup":
            names = tuple(name for name in options.split(",") if name in _KNOWN or name.startswith(_NAMED))
            if names and path.parent == Path("/sys/fs/cgroup"):
                found.append(Hierarchy(path, names))
    return found


def missing() -> str:
    """Which controllers a node would lack here, as a comma-separated list; empty where none."""
    mounted = hierarchies()
    if any(item.unified for item in mounted):
        root = mounted[0].path
        enable(root)  # a container's own group refuses this while processes are in it
        return ", ".join(sorted(NEEDED_V2 - set((root / "cgroup.subtree_control").read_text().split())))
    have = {name for item in mounted for name in item.controllers}
    return ", ".join(sorted(NEEDED - have))


def make(name: str) -> list[Path]:
    """Make a node's child in every hierarchy; the files a process writes its id to in order to join them all.

    Version 2 gives controllers to children only from a group without processes of its own: there, later processes join
    the group `init` below, which the node's first process makes (see `settle`).
    """
    joins = []
    for hierarchy in hierarchies():
        child = hierarchy.path / name
        child.mkdir()
        if hierarchy.unified:
            enable(hierarchy.path)
        if "cpuset" in hierarchy.controllers:  # empty in a new group, and nothing can join it before
            for setting in ("cpuset.cpus", "cpuset.mems"):
                (child / setting).write_text((hierarchy.path / setting).read_text())
        joins.append(child / "cgroup.procs")
    return joins


def settle(name: str, pid: int) -> list[Path]:
    """Once the node's first process runs: the files that further processes join by.

    Args:
        name: the name given to `make`.
        pid: the process that made the node's namespaces and waits outside of them.
    """
    joins = []
    for hierarchy in hierarchies():
        folder = hierarchy.path / name
        if hierarchy.unified:
            (folder / "init" / "cgroup.procs").write_text(str(pid))
            enable(folder)
            folder /= "init"
        joins.append(folder / "cgroup.procs")
    return joins


def enable(parent: Path) -> None:
    """Give the children of a group of version 2 the controllers a node needs."""
    for controller in sorted(NEEDED_V2 | {"io"}):
        with contextlib.suppress(OSError):  # `io` may be absent; for what is needed there is `missing`
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def kill(prefix: str) -> None:
    """SIGKILL every process of the groups whose names begin so, and wait for their end."""

    def ended() -> bool:
        pids = {int(pid) for folder in _folders(prefix) for pid in _processes(folder)}
        for pid in pids - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_for(ended, _DEADLINE_S, f"the processes in the control groups {prefix}* to end", poll_s=0.02)


def remove(prefix: str) -> None:
    """Remove the groups whose names begin so, with all below them; they must be empty of processes."""

    def removed() -> bool:
        for folder in _folders(prefix):
            for path, _, _ in os.walk(folder, topdown=False):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
        return not _folders(prefix)

    wait_for(removed, _DEADLINE_S, f"the control groups {prefix}* to be removable", poll_s=0.02)


def _folders(prefix: str) -> list[Path]:
    return [folder for item in hierarchies() for folder in item.path.glob(f"{prefix}*") if folder.is_dir()]


def _processes(folder: Path) -> list[str]:
    found: list[str] = []
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(FileNotFoundError):
            found += (Path(path) / "cgroup.procs").read_text().split()
    return found
