"""A hub on loopback: enough of the Hugging Face Hub's HTTP API for its own client, with its refusals and its faults.

Modelled on what `huggingface_hub` 2.4 asks for (hf_api.py, file_download.py, utils/_http.py): `/api/{type}s/{repo}` and
`/revision/{rev}`, the paged `/tree/{rev}`, `HEAD` and `GET` of `/resolve/{rev}/{path}`; large files are LFS and are
redirected to another host, as to the hub's CDN.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_BYTES = 1000
"""Files from this size on are LFS, as `.gitattributes` would have it."""
_PAGE = 3
_TRICKLE_S = 1.0
"""Between the bytes of a transfer that is held half-way."""
_LOOPBACK = "127.0.0.1"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(/revision/([^/?]+)|/tree/([^/?]+))?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/([0-9a-f]{64})")


@dataclass
class Repo:
    """A repository: its commits, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    """Whether its terms must have been accepted: only `TOKEN` has."""
    private: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit and move refs (main, at least) to it."""
        sha = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        for ref in ("main", *refs):
            self.refs[ref] = sha
        return sha


@dataclass(frozen=True)
class Request:
    """One request the server saw."""

    method: str
    path: str
    range: str
    authorization: str
    client: str
    """Address of who asked."""


class HubServer:
    """The server as a context manager. `endpoint` is what HF_ENDPOINT has to be.

    Args:
        host: the address it binds; for one that pods of a real node reach, give its `cdn` another name there.
    """

    TOKEN = "hf_accepted"
    STRANGER = "hf_stranger"

    def __init__(self, host: str = _LOOPBACK) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.cut: Counter[str] = Counter()
        """How often the transfer of a content (by sha256) still breaks half-way."""
        self.lies: dict[str, bytes] = {}
        """Other contents that are sent in place of the listed ones, by sha256."""
        self.sizes: dict[str, int] = {}
        """Sizes that are listed in place of the real ones, by path."""
        self.gone_after: int | None = None
        """Requests after which the server answers 503."""
        self.missing: set[str] = set()
        """Paths that are listed, and not there when they are asked for."""
        self.hold: dict[str, threading.Event] = {}
        """Contents (by sha256) that stop half-way until the event is set."""
        self.held = threading.Event()
        """Set once a transfer stands at its `hold`."""
        self._server = ThreadingHTTPServer((host, 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.endpoint = f"http://{host}:{self.port}"
        self.cdn = f"http://localhost:{self.port}"
        """Where large files are: another host name, or the client takes the redirect for a move of the hub itself."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for event in self.hold.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def model(self, name: str, files: dict[str, bytes] | Path, **kind: bool) -> Repo:
        """Publish a model."""
        return self._publish("models", name, files, **kind)

    def dataset(self, name: str, files: dict[str, bytes], **kind: bool) -> Repo:
        """Publish a data set."""
        return self._publish("datasets", name, files, **kind)

    def _publish(self, repo_type: str, name: str, files: dict[str, bytes] | Path, **kind: bool) -> Repo:
        if isinstance(files, Path):
            files = {item.name: item.read_bytes() for item in files.iterdir()}
        repo = self.repos.setdefault((repo_type, name), Repo(**kind))
        repo.commit(files)
        return repo

    def gets(self, part: str) -> list[Request]:
        """GETs whose path contains a text."""
        return [request for request in self.requests if request.method == "GET" and part in request.path]

    def content(self, sha256: str) -> bytes | None:
        """The content with this hash, of any repository."""
        for repo in self.repos.values():
            for files in repo.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        return data
        return None


def sha256(data: bytes) -> str:
    """Hash that LFS names a content by."""
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, *, body: bool) -> None:
            said = (self.headers.get("Range", ""), self.headers.get("Authorization", ""))
            hub.requests.append(Request(self.command, self.path, *said, str(self.client_address[0])))
            try:
                if hub.gone_after is not None and len(hub.requests) > hub.gone_after:
                    raise _RefusedError(503, "")
                url = urlsplit(self.path)
                path = unquote(url.path)
                if found := _API.fullmatch(path):
                    self._api(found, parse_qs(url.query))
                elif found := _RESOLVE.fullmatch(path):
                    self._resolve(found, body=body)
                elif found := _CDN.fullmatch(path):
                    self._cdn(found[1])
                else:
                    raise _RefusedError(404, "")
            except _RefusedError as refused:
                code = {"X-Error-Code": refused.code} if refused.code else {}
                self._send(refused.status, b"", code)

        def _repo(self, repo_type: str, name: str) -> Repo:
            repo = hub.repos.get((repo_type, name))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if repo is None or (repo.private and token != hub.TOKEN):
                # The hub does not tell a private repository from none; to nobody it is a 401.
                raise _RefusedError(404 if token else 401, "RepoNotFound")
            return repo

        def _files(self, repo: Repo, revision: str, *, content: bool) -> tuple[str, dict[str, bytes]]:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if content and repo.gated and token != hub.TOKEN:
                raise _RefusedError(403 if token else 401, "GatedRepo")
            sha = repo.refs.get(revision, revision)
            if sha not in repo.commits:
                raise _RefusedError(404, "RevisionNotFound")
            return sha, repo.commits[sha]

        def _api(self, found: re.Match[str], query: dict[str, list[str]]) -> None:
            repo = self._repo(found[1], found[2])
            sha, files = self._files(repo, found[4] or found[5] or "main", content=False)
            if not found[5]:
                self._send(200, json.dumps({"id": found[2], "sha": sha, "private": repo.private}).encode())
                return
            entries: list[dict[str, Any]] = []
            for path, data in sorted(files.items()):
                size = hub.sizes.get(path, len(data))
                entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": _blob(data)}
                if len(data) >= LFS_BYTES:
                    entry["lfs"] = {"oid": sha256(data), "size": size, "pointerSize": 134}
                entries.append(entry)
            start = int(query.get("cursor", ["0"])[0])
            more = {}
            if start + _PAGE < len(entries):
                url = f"{hub.endpoint}{urlsplit(self.path).path}?recursive=True&cursor={start + _PAGE}"
                more = {"Link": f'<{url}>; rel="next"'}
            self._send(200, json.dumps(entries[start : start + _PAGE]).encode(), more)

        def _resolve(self, found: re.Match[str], *, body: bool) -> None:
            repo = self._repo("datasets" if found[1] else "models", found[2])
            sha, files = self._files(repo, found[3], content=True)
            data = files.get(found[4])
            if data is None or found[4] in hub.missing:
                raise _RefusedError(404, "EntryNotFound")
            headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
            if len(data) >= LFS_BYTES:
                size = hub.sizes.get(found[4], len(data))
                linked = {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{sha256(data)}"'}
                self._send(302, b"", headers | linked | {"Location": f"{hub.cdn}/cdn/{sha256(data)}"})
            else:
                self._send(200, data if body else b"", headers | {"ETag": f'"{_blob(data)}"'}, size=len(data))

        def _cdn(self, digest: str) -> None:
            data = hub.lies.get(digest) or hub.content(digest)
            if data is None:
                raise _RefusedError(404, "")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            half = start + (len(data) - start) // 2
            self.wfile.write(data[start:half])
            self.wfile.flush()
            if digest in hub.hold:
                hub.held.set()
                while not hub.hold[digest].wait(_TRICKLE_S) and half < len(data) - 1:
                    self.wfile.write(data[half : half + 1])  # or the client takes the connection for dead
                    half += 1
            if hub.cut[digest] > 0:
                hub.cut[digest] -= 1
                self.close_connection = True
                return
            self.wfile.write(data[half:])

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, size: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if size is None else size))
            self.end_headers()
            self.wfile.write(body)

    return Handler
