"""A process that ends with the one that started it.

torchrun gives each rank a session of its own, so nobody reaches the ranks once torchrun itself is killed (by the kernel
for want of memory, say): they would go on, or wait for each other on a GPU until a time-out. A pod takes them down with
its first process; a run without a cluster has no pod.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From Linux' sys/prctl.h."""


def end_with_parent() -> None:
    """Be killed by the kernel when the parent ends. Only Linux can do so; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
