"""The progress endpoint of an operator under test: its certificate, tokens of real pods, and pushes over real HTTPS."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from kubernetes import client

from finetune_cli.certificates import Authority, new_authority, server_certificate
from finetune_operator.builders.progress import audience, push_path

from .cluster import Cluster
from .process import free_ports

HOST = "localhost"
LIFETIME = timedelta(days=60)


@dataclass(frozen=True)
class Pushed:
    """What a push was answered."""

    status: int
    text: str
    retry_after: str | None


class ProgressCertificate:
    """A folder with tls.crt, tls.key and ca.crt as a mounted Secret has them."""

    def __init__(self, folder: Path, hosts: tuple[str, ...] = (HOST,)) -> None:
        """Make the folder and an authority; `issue` puts the files there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.hosts = hosts
        self.authority: Authority = new_authority(_now())

    def issue(
        self,
        *,
        started: datetime | None = None,
        lifetime: timedelta = LIFETIME,
        hosts: tuple[str, ...] | None = None,
        authority: Authority | None = None,
    ) -> None:
        """Write a certificate, by default a good one; `authority` signs without being the one in ca.crt."""
        certificate, key = server_certificate(
            authority or self.authority, hosts or self.hosts, started or _now(), lifetime
        )
        ca = self.authority.certificate.public_bytes(serialization.Encoding.PEM)
        for name, content in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", ca)):
            self.write(name, content)

    def expire(self) -> None:
        """Write one that has expired."""
        self.issue(started=_now() - timedelta(days=10), lifetime=timedelta(days=9))

    def write(self, name: str, content: bytes) -> None:
        """Replace one file whole, as the kubelet does."""
        fresh = self.folder / f".{name}.new"
        fresh.write_bytes(content)
        fresh.replace(self.folder / name)

    def remove(self) -> None:
        """The Secret is gone."""
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (self.folder / name).unlink(missing_ok=True)


class ProgressEndpoint:
    """Where one replica hears pushes."""

    def __init__(self, folder: Path) -> None:
        """Choose a port and make a certificate."""
        self.port = free_ports(1)[0]
        self.certificate = ProgressCertificate(folder)
        self.certificate.issue()

    @property
    def url(self) -> str:
        """What pods are given."""
        return f"https://{HOST}:{self.port}"

    @property
    def arguments(self) -> list[str]:
        """The operator's arguments."""
        return [
            *("--progress-certificate-dir", str(self.certificate.folder)),
            *("--progress-port", str(self.port)),
            *("--progress-url", self.url),
        ]

    def push(
        self, namespace: str, job: str, token: str | None, body: bytes | dict[str, Any], *, scheme: str = "Bearer"
    ) -> Pushed:
        """One push. Raises OSError while nobody listens."""
        context = ssl.create_default_context(cafile=str(self.certificate.folder / "ca.crt"))
        connection = http.client.HTTPSConnection(HOST, self.port, timeout=30, context=context)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
        try:
            connection.request("POST", push_path(namespace, job), content, headers)
            answer = connection.getresponse()
            return Pushed(answer.status, answer.read().decode(), answer.getheader("Retry-After"))
        finally:
            connection.close()


def pod_token(cluster: Cluster, pod: client.V1Pod, job_uid: str, *, for_audience: str | None = None) -> str:
    """A token bound to the pod, as the kubelet asks for it: for the job, or for another audience."""
    request = client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(
            audiences=[for_audience or audience(job_uid)],
            expiration_seconds=3600,
            bound_object_ref=client.V1BoundObjectReference(
                api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid
            ),
        )
    )
    core = client.CoreV1Api(cluster.api())
    account = pod.spec.service_account_name or "default"
    answer = core.create_namespaced_service_account_token(account, pod.metadata.namespace, request)
    return str(answer.status.token)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
