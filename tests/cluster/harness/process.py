"""Child processes that cannot outlive the test process, and free ports for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Asks the kernel to SIGKILL the process when its parent dies (PR_SET_PDEATHSIG = 1 in linux/prctl.h; it survives
# execve), then becomes the real program. A wrapper instead of preexec_fn: Python code between fork and exec of a
# program with threads may deadlock.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent died')\n"
    "os.execvpe(sys.argv[2], sys.argv[2:], os.environ)"
)


class ProcessDied(RuntimeError):
    """A server ended although it should run; the message holds the end of its log."""


class Process:
    """A server in its own process group, with its output in a log file.

    It is killed by ``kill``, at the interpreter's exit, or by the kernel when the thread that started it dies.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Describe the process; ``start`` runs it. ``env`` replaces the environment, None inherits it."""
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self._env = dict(env) if env is not None else None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, cwd: Path | None = None) -> None:
        """Start it; its output is appended to the log."""
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=cwd,
                start_new_session=True,
            )
        atexit.register(self.kill)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id (also the id of its process group)."""
        return self._started().pid

    def check(self) -> bool:
        """True while it runs.

        Raises:
            ProcessDied: it ended.
        """
        if not self.running:
            raise ProcessDied(
                f"{self.name} ended with {self._started().returncode}; the end of its log:\n{self.log_tail()}"
            )
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its group; nothing happens where it has already ended."""
        with contextlib.suppress(ProcessLookupError):
            self._started().send_signal(number)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; the exit status (negative: killed by that signal), None where it still runs."""
        try:
            return self._started().wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL the whole process group and reap the process; harmless when called twice."""
        atexit.unregister(self.kill)
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def log_tail(self, size: int = 3000) -> str:
        """The last ``size`` bytes of the log."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Ports nothing listens on now, all different, below the range the kernel hands out to clients.

    A port the kernel picked for ``bind(0)`` is in the range of outgoing connections: another process' connection
    may take it between this call and the server's start, and does on a busy machine.
    """
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first = 10_000 if lowest_ephemeral > 12_000 else 1024
    span = max(lowest_ephemeral - first, 1)
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for attempt in range(span):
            port = first + (int.from_bytes(os.urandom(4)) + attempt) % span
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.enter_context(probe)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"found only {len(found)} of {count} free ports on {host} in {first}..{lowest_ephemeral}")
