"""The part of a kubelet that serves logs: the API server asks it over TLS for the lines of a container."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from . import pod_status
from .controlplane import ControlPlane
from .process import LOOPBACK

_FOLLOW_LOOK_S = 0.05


class LogServer:
    """Keeps lines per pod and serves `/containerLogs`; a context manager. ``attach`` says for which node."""

    def __init__(self, cluster: ControlPlane, folder: Path) -> None:
        """Serve with a certificate of the cluster's authority; its files are written to ``folder``."""
        self._cluster = cluster
        self._lines: dict[str, list[tuple[str, str]]] = {}
        self._ended: set[str] = set()
        self._lock = threading.Condition()
        self.requests: list[dict[str, str]] = []
        cluster.authority.server("kubelet", (LOOPBACK,)).write(folder, "kubelet")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
        self._server = ThreadingHTTPServer((LOOPBACK, 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Self:
        """Serve."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End every answer and stop."""
        with self._lock:
            self._ended.update(self._lines)
            self._lock.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def attach(self, node: str) -> None:
        """Let the API server ask here for the logs of this node's pods."""
        status = {"daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}}}
        core = client.CoreV1Api(self._cluster.api())
        core.patch_node_status(node, {"status": status}, _content_type=pod_status.STRATEGIC_MERGE)

    def write(self, pod: str, *lines: str) -> None:
        """The container of a pod writes."""
        with self._lock:
            for line in lines:
                # RFC3339NanoFixed, as the kubelet writes times.
                moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"
                self._lines.setdefault(pod, []).append((moment, line))
            self._lock.notify_all()

    def end(self, pod: str) -> None:
        """The container has ended: whoever follows its log gets the end of it."""
        with self._lock:
            self._ended.add(pod)
            self._lock.notify_all()

    def _answer(self, pod: str, query: dict[str, str], send: Any) -> None:
        since, position = query.get("sinceTime", ""), 0
        if "tailLines" in query:
            position = max(0, len(self._lines.get(pod, [])) - int(query["tailLines"]))
        while True:
            with self._lock:
                if len(self._lines.get(pod, [])) == position and pod not in self._ended:
                    self._lock.wait(_FOLLOW_LOOK_S)
                lines, ended = self._lines.get(pod, [])[position:], pod in self._ended
                position += len(lines)
            for moment, line in lines:
                if moment[:19] >= since[:19]:
                    send(f"{moment} {line}\n" if query.get("timestamps") == "true" else f"{line}\n")
            if query.get("follow") != "true" or (ended and not lines):
                return

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                outer.requests.append(query)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

                def send(text: str) -> None:
                    data = text.encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    self.wfile.flush()

                try:
                    outer._answer(url.path.split("/")[3], query, send)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True

            def log_message(self, *words: object) -> None:
                return

        return Handler
