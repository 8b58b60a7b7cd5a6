"""A lock between processes of different machines that share a folder, for work that takes minutes to hours.

No `flock` (several cluster file systems grant it to everybody, and it dies with a broken mount) and no comparison of
two machines' clocks. Holders take ascending numbers: file n is created exclusively, and who made the highest one holds
the lock. The holder beats: it rewrites its file. Who waits and has seen the same bytes for `stale_s` of its own clock
takes the next number. A holder that had only been asleep finds a higher number than its own; what it must not do then
is refused by what it locked, which is named after the number (a fencing token: M. Kleppmann, "How to do distributed
locking", 2016).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

_RECORD_BYTES = 512
"""A record is always as long: rewritten in place it is never seen cut, and NFS shows it to who opens the file anew."""


@dataclass(frozen=True)
class Timing:
    """Seconds between two beats, until a silent holder is dead, and between two looks of who waits.

    `stale_s` leaves room for the 60 s that NFS may show an old directory.
    """

    beat_s: float = 10.0
    stale_s: float = 120.0
    poll_s: float = 1.0


@dataclass(frozen=True)
class Holder:
    """What a holder tells those who wait."""

    host: str
    """Name of the pod or machine."""
    process: str
    """Identity of the process where its end can be seen: boot, pid namespace, pid and its start."""
    beat: int = 0
    done: int = 0
    """Bytes."""
    total: int = 0
    """Bytes; 0 = not known."""
    released: bool = False


class FolderLock:
    """The lock of one folder. Made per process; `acquire` gives a context in which it is held."""

    def __init__(self, folder: Path, timing: Timing, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._timing = timing
        self._clock = clock

    def acquire(
        self, *, needless: Callable[[], bool], waiting: Callable[[Holder], None], wait: Callable[[float], None]
    ) -> Held | None:
        """Take the lock, or return None as soon as it is needless.

        Args:
            needless: whether what the lock is for has been done meanwhile, by somebody else.
            waiting: hears what the holder tells, once per look.
            wait: waits some seconds; may raise to give up.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        seen: tuple[int, bytes] | None = None
        since_s = self._clock()
        while True:
            number, content = self._newest()
            holder = _read(content)
            if (number, content) != seen:
                seen, since_s = (number, content), self._clock()
            dead = holder is not None and _is_dead(holder)
            silent = self._clock() - since_s >= self._timing.stale_s
            if number == 0 or dead or silent or (holder is not None and holder.released):
                held = self._take(number + 1)
                if held is not None:
                    return held
                continue
            if needless():
                return None
            if holder is not None:
                waiting(holder)
            wait(self._timing.poll_s)

    def _newest(self) -> tuple[int, bytes]:
        number = max((int(item.name) for item in self._folder.iterdir() if item.name.isdigit()), default=0)
        if not number:
            return 0, b""
        try:
            return number, (self._folder / f"{number:08d}").read_bytes()
        except FileNotFoundError:  # a successor swept it
            return number, b""

    def _take(self, number: int) -> Held | None:
        path = self._folder / f"{number:08d}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
        except FileExistsError:
            return None
        held = Held(path, number, descriptor, self._timing)
        if held.lost:  # taken, and taken again, since this process looked
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        for older in self._folder.iterdir():
            if older.name.isdigit() and int(older.name) < number:
                older.unlink(missing_ok=True)
        return held


class Held:
    """The lock while this process has it: it beats until the context ends."""

    def __init__(self, path: Path, number: int, descriptor: int, timing: Timing) -> None:
        self._path = path
        self.number = number
        self._descriptor = descriptor
        self._timing = timing
        self._record = Holder(socket.gethostname(), _this_process())
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="model-cache-lock", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._record = replace(self._record, released=True)
        try:
            self._write()
        finally:
            os.close(self._descriptor)

    def tell(self, done: int, total: int) -> None:
        """Say how many bytes are there; goes out with the next beat."""
        with self._guard:
            self._record = replace(self._record, done=done, total=total)

    @property
    def lost(self) -> bool:
        """Whether somebody took this process for dead and has the lock now."""
        return any(item.name.isdigit() and int(item.name) > self.number for item in self._path.parent.iterdir())

    def _beat_on(self) -> None:
        while not self._ended.wait(self._timing.beat_s):
            with self._guard:
                self._record = replace(self._record, beat=self._record.beat + 1)
            try:
                self._write()
            except OSError:  # a file system that hangs for a while: a missed beat is what the others see
                continue

    def _write(self) -> None:
        with self._guard:
            record = json.dumps(asdict(self._record)).encode().ljust(_RECORD_BYTES)
        os.pwrite(self._descriptor, record, 0)
        os.fsync(self._descriptor)


def _read(content: bytes) -> Holder | None:
    """What a record says; None for one that is just being made."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _this_process() -> str:
    return f"{_where()} {os.getpid()} {_started(os.getpid())}"


def _where() -> str:
    """This boot of this machine, and which processes can be seen from here; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (field 22 of proc_pid_stat(5)); empty when there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]


def _is_dead(holder: Holder) -> bool:
    """Whether the holder ran where it would be seen, and is not there any more."""
    where, _, process = holder.process.partition(" ")
    pid, _, started = process.partition(" ")
    return bool(where) and where == _where() and pid.isdigit() and _started(int(pid)) != started
