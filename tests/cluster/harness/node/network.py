"""The cables of the nodes: a pair of virtual interfaces from the machine to each node, and between every two nodes.

All are made by the machine and end in a node's network namespace, so they vanish with the node. Nothing is forwarded by
the machine, and none of its firewall rules is touched.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess

from tests.cluster.harness.waiting import wait_for

_DEADLINE_S = 30


class NetworkError(RuntimeError):
    """`ip` refused something; the message is what it said."""


def ip(*args: object, pid: int | None = None) -> str:
    """Run `ip` on the machine, or in the network namespace of a process; its output."""
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid else []
    command = [*inside, "ip", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def overlaps(wanted: ipaddress.IPv4Network) -> bool:
    """Whether the machine has a route into a network."""
    routes = [route["dst"] for route in json.loads(ip("-j", "-4", "route", "show", "table", "all"))]
    return any(wanted.overlaps(ipaddress.IPv4Network(dst)) for dst in routes if dst not in {"default", "0.0.0.0/0"})


def add_host_address(address: str) -> None:
    """Give the machine an address of its own for the nodes."""
    ip("address", "add", f"{address}/32", "dev", "lo")


def remove_host_address(address: str) -> None:
    """Take it away again; harmless where it is not there."""
    addresses = [
        item["local"] for link in json.loads(ip("-j", "-4", "address", "show", "lo")) for item in link["addr_info"]
    ]
    if address in addresses:
        ip("address", "delete", f"{address}/32", "dev", "lo")


def connect(pid: int, interface: str, host: str, address: str, pods: str) -> None:
    """Lay the cable between the machine and a node, and route the node's pods through it.

    Args:
        pid: a process in the node's network namespace; the node's end is called `eth0`.
        interface: the name of the machine's end.
        host: the machine's address.
        address: the node's address.
        pods: the addresses of its pods.
    """
    ip("link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", pid)
    ip("link", "set", "lo", "up", pid=pid)
    ip("address", "add", f"{address}/32", "dev", "eth0", pid=pid)
    ip("link", "set", "eth0", "up", pid=pid)
    ip("route", "add", f"{host}/32", "dev", "eth0", pid=pid)
    ip("route", "add", "default", "via", host, "dev", "eth0", pid=pid)
    ip("link", "set", interface, "up")
    ip("route", "add", f"{address}/32", "dev", interface, "src", host)
    ip("route", "add", pods, "via", address, "dev", interface, "src", host, "onlink")


def join(one: tuple[int, str, str, str], other: tuple[int, str, str, str]) -> None:
    """Lay the cable between two nodes and route each one's pods to the other.

    Args:
        one: a process in the node's network namespace, the name of its end, its address, the addresses of its pods.
        other: the same of the other node.
    """
    (pid, end, _, _), (peer_pid, peer_end, _, _) = one, other
    ip("link", "add", "name", end, "type", "veth", "peer", "name", peer_end, "netns", peer_pid, pid=pid)
    for (here, interface, _, _), (_, _, address, pods) in ((one, other), (other, one)):
        ip("link", "set", interface, "up", pid=here)
        ip("route", "add", f"{address}/32", "dev", interface, pid=here)
        ip("route", "add", pods, "via", address, "dev", interface, "onlink", pid=here)


def remove(prefix: str) -> None:
    """Remove the machine's interfaces whose names begin so; a namespace that ends does so too, a moment later."""

    def removed() -> bool:
        for name in interfaces(prefix):
            subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
        return not interfaces(prefix)

    wait_for(removed, _DEADLINE_S, f"the network interfaces {prefix}* to be gone", poll_s=0.02)


def interfaces(prefix: str) -> list[str]:
    """The machine's interfaces whose names begin so."""
    return [item["ifname"] for item in json.loads(ip("-j", "link", "show")) if item["ifname"].startswith(prefix)]
