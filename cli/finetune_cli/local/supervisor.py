"""The parent of one stage's process: outlives the command line, stops its child with grace, writes the exit code.

`python -m finetune_cli.local.supervisor FOLDER COMMAND...` with only the standard library, because it waits for hours.
Files in FOLDER: `supervisor.json` (claimed create-only, so that an attempt is never started twice), `runner.json`,
`exit.json` at the end; `stop.json` says how much grace a SIGTERM gives. SIGUSR1 kills at once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from finetune_cli.local.files import read_json, write_atomically

DEFAULT_GRACE_S = 30
ALREADY_CLAIMED = 75


def process_identity(pid: int) -> str | None:
    """What tells this process from a later one with the same number; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        shown = subprocess.run(
            ["/bin/ps", "-o", "lstart=", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        return None if not shown or shown[-1].startswith("Z") else " ".join(shown[:-1])
    return None if fields[0] == "Z" else f"{boot} {fields[19]}"


def now_text() -> str:
    """The time as the contract writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _claim(folder: Path) -> bool:
    mine = folder / f".supervisor.{os.getpid()}"
    mine.write_text(
        json.dumps({"pid": os.getpid(), "identity": process_identity(os.getpid()), "startedAt": now_text()}),
        encoding="utf-8",
    )
    try:
        os.link(mine, folder / "supervisor.json")
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return True


class Supervisor:
    """Signals may arrive before the child exists; they are kept until it does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._asked = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """SIGTERM: ask the child and set the alarm. SIGALRM, SIGUSR1: kill its whole group."""
        if self._child is None:
            self._pending.append(number)
        elif number == signal.SIGTERM and not self._asked:
            # Asked again: the grace that runs is neither shortened nor prolonged.
            self._asked = True
            stop = read_json(self._folder / "stop.json") or {}
            signal.setitimer(signal.ITIMER_REAL, max(0.1, float(stop.get("graceSeconds", DEFAULT_GRACE_S))))
            self._child.terminate()
        elif number != signal.SIGTERM:
            self._kill_group()

    def _kill_group(self) -> None:
        if self._child is not None:
            try:
                os.killpg(self._child.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def run(self, command: list[str]) -> int:
        """Start the command in a session of its own and wait. Returns its exit code (128 + n after signal n)."""
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with (self._folder / "log.txt").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._child = child
        write_atomically(
            self._folder / "runner.json", json.dumps({"pid": child.pid, "identity": process_identity(child.pid)})
        )
        while self._pending:
            self.on_signal(self._pending.pop(0), None)
        code = child.wait()
        # Whatever the stage left behind (loaders, workers of a gang) must not go on writing.
        self._kill_group()
        return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    """Claim the attempt, run it, write `exit.json`, clear its scratch."""
    folder, command = Path(arguments[0]), arguments[1:]
    if not _claim(folder):
        return ALREADY_CLAIMED
    started = time.monotonic()
    try:
        code = Supervisor(folder).run(command)
    except OSError as error:
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"cannot start {command[0]}: {error}\n")
        code = 127
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    write_atomically(
        folder / "exit.json",
        json.dumps({"exitCode": code, "finishedAt": now_text(), "wallSeconds": round(time.monotonic() - started, 3)}),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
