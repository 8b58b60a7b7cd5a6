"""What an instance owns on the machine: a number, and with it names and addresses that nobody else uses.

A slot is held by a lock on a file, which the kernel frees when the holder dies, however it dies. Whoever gets the lock
of a slot that was not released sweeps what its dead holder left. Names of everything on the machine begin with the
slot's name, so the sweep needs no list of what was made.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from tests.cluster.harness.binaries import locked
from tests.cluster.harness.controlplane import WORK_PREFIX

from . import cgroups, network

RUN_DIR = Path("/run/finetune-nodes")
"""Root's own folder on every Linux machine, and gone with a reboot, as everything it tells of."""

SLOTS = 16
_FIRST_NETWORK = 224


class NoSlot(RuntimeError):
    """Every slot is taken by a living instance, or its addresses by another network of the machine."""


@dataclass(frozen=True)
class Slot:
    """Names and addresses of one instance: ``10.<224 + number>.0.0/16``, interfaces and cgroups ``ftn<number>n<i>``."""

    number: int

    @property
    def name(self) -> str:
        """Begins every name, and no name of another slot."""
        return f"ftn{self.number}n"

    @property
    def network(self) -> ipaddress.IPv4Network:
        """All addresses of the instance."""
        return ipaddress.IPv4Network((f"10.{_FIRST_NETWORK + self.number}.0.0", 16))

    @property
    def host_address(self) -> str:
        """Where pods reach servers of the machine; on the loopback interface, so that it outlives every node."""
        return f"10.{_FIRST_NETWORK + self.number}.255.1"

    @property
    def pods_range(self) -> str:
        """The addresses of all pods."""
        return f"10.{_FIRST_NETWORK + self.number}.0.0/17"

    def node_address(self, index: int) -> str:
        """The address of a node."""
        return f"10.{_FIRST_NETWORK + self.number}.255.{10 + index}"

    def pod_range(self, index: int) -> str:
        """The addresses of a node's pods."""
        return f"10.{_FIRST_NETWORK + self.number}.{index}.0/24"

    def node_name(self, index: int) -> str:
        """The name of a node's cgroup and of the host's end of its cable (at most 15 characters)."""
        return f"{self.name}{index}"


class Claim:
    """A slot that this process holds until ``release`` or its end."""

    def __init__(self, slot: Slot, handle: IO[str]) -> None:
        """Take over a locked file."""
        self.slot = slot
        self._handle = handle

    @classmethod
    def take(cls) -> Self:
        """Sweep what dead instances left, then claim the first free slot and give the machine its address.

        Raises:
            NoSlot: there is none.
        """
        with _one_at_a_time():
            free = list(_free())
            usable = next((claim for claim in free if not network.overlaps(claim.slot.network)), None)
            for claim in free:
                if claim is not usable:
                    claim._handle.close()
        if usable is None:
            raise NoSlot(
                f"no place for a node: each of the {SLOTS} networks from 10.{_FIRST_NETWORK}.0.0/16 on is in use "
                f"(by other instances: see {RUN_DIR}; by the machine: see `ip route`)"
            )
        usable.record(None)
        network.add_host_address(usable.slot.host_address)
        return cls(usable.slot, usable._handle)

    def record(self, work_dir: Path | None) -> None:
        """Note which folder goes with the slot, for whoever sweeps after a crash."""
        self._write(json.dumps({"pid": os.getpid(), "work_dir": str(work_dir) if work_dir else None}))

    def release(self) -> None:
        """Remove everything of the slot from the machine and free it; harmless when called twice."""
        if self._handle.closed:
            return
        _sweep(self.slot, None)
        self._write("")
        self._handle.close()

    def _write(self, text: str) -> None:
        self._handle.seek(0)
        self._handle.truncate()
        self._handle.write(text)
        self._handle.flush()


def sweep() -> None:
    """Remove what instances left that died without cleaning up."""
    with _one_at_a_time():
        for claim in _free():
            claim._handle.close()


def _one_at_a_time() -> AbstractContextManager[None]:
    """Whoever looks holds every free slot for a moment, and somebody else who looks then would find none."""
    return locked(RUN_DIR / "lock")


def _free() -> Iterator[Claim]:
    """The slots that no living instance holds, locked and swept."""
    for number in range(SLOTS):
        handle = (RUN_DIR / f"slot-{number}").open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            continue
        handle.seek(0)
        left = handle.read()
        claim = Claim(Slot(number), handle)
        if left:
            _sweep(claim.slot, json.loads(left)["work_dir"])
            claim._write("")
        yield claim


def _sweep(slot: Slot, work_dir: str | None) -> None:
    cgroups.kill(slot.name)
    network.remove(slot.name)
    network.remove_host_address(slot.host_address)
    cgroups.remove(slot.name)
    if work_dir and Path(work_dir).name.startswith(WORK_PREFIX):
        shutil.rmtree(work_dir, ignore_errors=True)
