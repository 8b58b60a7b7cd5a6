"""Whether this machine can have a node, and if not, why: one line for a person."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import cgroups

PROGRAMS = ("containerd", "ctr", "runc", "ip", "iptables", "conntrack", "nsenter", "unshare", "pivot_root")
CNI_DIR = Path("/usr/lib/cni")
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")

# In namespaces of its own, so that nothing of it stays: what the harness will do, in small.
_KERNEL_PROBE = """\
set -e
ip link add probe0 type veth peer name probe1
ip link add probe2 type bridge
iptables -w -t nat -A PREROUTING -m comment --comment probe -j ACCEPT
iptables -w -t nat -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE
iptables -w -t filter -A FORWARD -m statistic --mode random --probability 0.5 -j ACCEPT
mkdir lower upper work merged
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged
"""


@functools.cache
def missing_for_node() -> str:
    """Why no node can run on this machine, in one line; empty where one can."""
    if sys.platform != "linux":
        return f"a node needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "a node needs root (namespaces, mounts, network interfaces); the tests run as an ordinary user"
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    programs += [f"CNI plugin {name}" for name in CNI_PLUGINS if not (CNI_DIR / name).exists()]
    if programs:
        return f"a node needs programs that are not installed: {', '.join(programs)} (`make node-deps` installs them)"
    if controllers := cgroups.missing():
        return f"a node needs control groups that are not mounted or not handed down here: {controllers}"
    return _refused_by_the_kernel()


def _refused_by_the_kernel() -> str:
    with tempfile.TemporaryDirectory(prefix="finetune-probe-") as folder:
        isolated = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork"]
        done = subprocess.run(
            [*isolated, "sh", "-c", _KERNEL_PROBE], cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    return f"the kernel, or the container around the tests, refuses what a node needs: {said} (in {folder})"
