"""How to reach the API server: from the pod's own service account, or from a kubeconfig."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoConnectionError(Exception):
    """The cluster cannot be reached with what is configured; the message names the fix."""


@dataclass(frozen=True)
class Connection:
    """Server and credentials. Certificates are PEM; the token is read anew from its file, which is rotated."""

    server: str
    ca: bytes | None = None
    insecure: bool = False
    certificate: bytes | None = None
    key: bytes | None = None
    fixed_token: str = ""
    token_file: Path | None = None
    namespace: str = "default"
    """Namespace of the pod or of the kubeconfig's context."""

    def token(self) -> str:
        """The bearer token of now; empty when a client certificate is used."""
        return self.token_file.read_text().strip() if self.token_file is not None else self.fixed_token

    def ssl_context(self) -> ssl.SSLContext:
        """TLS settings for a session."""
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None and self.key is not None:
            # The ssl module reads certificates from files only.
            with tempfile.NamedTemporaryFile(prefix="finetune-client-") as pair:
                pair.write(self.certificate + b"\n" + self.key)
                pair.flush()
                context.load_cert_chain(pair.name)
        return context


def in_cluster() -> Connection:
    """The connection of a pod. Raises NoConnectionError outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    token_file = SERVICE_ACCOUNT / "token"
    if not host or not port or not token_file.exists():
        raise NoConnectionError("not inside a pod with a service account token; pass --kubeconfig FILE")
    address = f"[{host}]" if ":" in host else host
    return Connection(
        server=f"https://{address}:{port}",
        ca=(SERVICE_ACCOUNT / "ca.crt").read_bytes(),
        token_file=token_file,
        namespace=(SERVICE_ACCOUNT / "namespace").read_text().strip(),
    )


def _named(config: dict[str, Any], kind: str, name: str, file: Path) -> dict[str, Any]:
    for entry in config.get(f"{kind}s") or []:
        if entry.get("name") == name:
            return dict(entry.get(kind) or {})
    raise NoConnectionError(f"{file}: there is no {kind} named {name!r}")


def _bytes(entry: dict[str, Any], key: str, folder: Path) -> bytes | None:
    inline, file = entry.get(f"{key}-data"), entry.get(key)
    if inline:
        return base64.b64decode(str(inline))
    return (folder / str(file)).read_bytes() if file else None


def from_kubeconfig(file: Path, context: str | None = None) -> Connection:
    """The connection of a kubeconfig's context (default: the current one). Raises NoConnectionError."""
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise NoConnectionError(f"{file}: {error}; pass --kubeconfig with a readable kubeconfig") from error
    if not isinstance(config, dict):
        raise NoConnectionError(f"{file} is not a kubeconfig")
    chosen = _named(config, "context", context or str(config.get("current-context", "")), file)
    cluster = _named(config, "cluster", str(chosen.get("cluster", "")), file)
    user = _named(config, "user", str(chosen.get("user", "")), file) if chosen.get("user") else {}
    for unsupported in ("exec", "auth-provider"):
        if user.get(unsupported):
            raise NoConnectionError(
                f"{file}: the user's {unsupported} plugin is not supported; use a service account token or a client "
                "certificate"
            )
    token_file = user.get("tokenFile")
    try:
        return Connection(
            server=str(cluster.get("server", "")).rstrip("/"),
            ca=_bytes(cluster, "certificate-authority", file.parent),
            insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
            certificate=_bytes(user, "client-certificate", file.parent),
            key=_bytes(user, "client-key", file.parent),
            fixed_token=str(user.get("token", "")),
            token_file=file.parent / token_file if token_file else None,
            namespace=str(chosen.get("namespace", "default")),
        )
    except OSError as error:
        raise NoConnectionError(f"{file}: {error}") from error


def connect(kubeconfig: Path | None) -> Connection:
    """The given kubeconfig, or the pod's service account, or the file of $KUBECONFIG. Raises NoConnectionError."""
    if kubeconfig is not None:
        return from_kubeconfig(kubeconfig)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster()
    if os.environ.get("KUBECONFIG"):
        return from_kubeconfig(Path(os.environ["KUBECONFIG"].split(os.pathsep)[0]))
    raise NoConnectionError("no cluster: neither inside a pod, nor --kubeconfig, nor $KUBECONFIG")
