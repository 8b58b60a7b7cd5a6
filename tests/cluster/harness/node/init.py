"""The first process of a node: give it a file system of its own, then adopt orphans until the end.

Runs alone (`python -I init.py JSON`) in fresh mount, process, network, host name, IPC and cgroup namespaces. The node
sees the machine's programs read-only and its own folder at its path, and has `/var`, `/run`, `/tmp` and the control
groups for itself: two nodes on one machine do not meet, and a hostPath volume shows the node, not the machine.
"""

import json
import os
import signal
import socket
import subprocess
import sys

PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix")


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def bind(path: str, root: str, *, writable: bool) -> None:
    target = root + path
    os.makedirs(target, exist_ok=True)
    mount("--rbind", path, target)
    if not writable:
        mount("-o", "remount,bind,ro", target)


def make_root(root: str, read_only: list[str], writable: list[str]) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for name in PROGRAMS:
        path = f"/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            bind(path, root, writable=False)
    for name in ("proc", "sys", "dev", "run/netns", "run/lock", "var/lib", "var/log", "tmp", "root", ".old"):
        os.makedirs(f"{root}/{name}")
    os.chmod(f"{root}/tmp", 0o1777)
    os.symlink("/run", f"{root}/var/run")
    bind("/dev", root, writable=True)
    mount("-t", "proc", "proc", f"{root}/proc")
    mount("-t", "sysfs", "sysfs", f"{root}/sys")
    for path in read_only:
        bind(path, root, writable=False)
    for path in writable:
        bind(path, root, writable=True)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", ".old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/.old"], check=True)


def mount_cgroups(hierarchies: list[list[str]]) -> None:
    base = "/sys/fs/cgroup"
    if hierarchies == [["", ""]]:
        mount("-t", "cgroup2", "cgroup2", base)
        os.mkdir(f"{base}/init")
        with open(f"{base}/init/cgroup.procs", "w") as group:
            group.write("0")  # this process
        return
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", base)
    for name, options in hierarchies:
        os.mkdir(f"{base}/{name}")
        mount("-t", "cgroup", "-o", options, "cgroup", f"{base}/{name}")
        for controller in name.split(",") if "," in name else ():
            os.symlink(name, f"{base}/{controller}")


def main() -> None:
    plan = json.loads(sys.argv[1])
    make_root(plan["root"], plan["read_only"], plan["writable"])
    mount_cgroups(plan["hierarchies"])
    mount("--make-rshared", "/")
    for path, value in plan["sysctl"].items():
        with open(f"/proc/sys/{path}", "w") as setting:
            setting.write(value)
    socket.sethostname(plan["name"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the orphans this process adopts
    with open(plan["ready"], "w") as marker:
        marker.write("ready")
    while True:
        signal.pause()


main()
