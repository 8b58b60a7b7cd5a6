"""A cluster under test, whoever runs it: kubeconfigs per user, kubectl, API clients, request counts."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes import client, config

from .binaries import binary
from .pki import signing_request
from .waiting import wait_for

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


UNDER_TEST = "KUBECONFIG_UNDER_TEST"
"""The variable with the kubeconfig of a cluster to test instead of one of our own; `make ... KUBECONFIG=path` sets it.

Not ``KUBECONFIG`` itself: the tests create and delete, and an exported one may be anybody's.
"""


@dataclass(frozen=True)
class RequestCount:
    """One series of ``apiserver_request_total``."""

    verb: str
    group: str
    resource: str
    subresource: str
    code: int
    count: int


class Cluster:
    """A cluster that already runs, reached through an administrator's kubeconfig.

    The control plane of the harness extends it; with ``KUBECONFIG_UNDER_TEST`` the suite uses it as it is.
    """

    watches_nodes = True
    """Whether a node without a fresh Lease counts as lost."""

    def __init__(self, admin_kubeconfig: Path, work_dir: Path | None = None) -> None:
        """Use the cluster of a kubeconfig; files are written to ``work_dir`` (default: a new temporary folder)."""
        self.admin_kubeconfig = admin_kubeconfig
        self.work_dir = work_dir or Path(tempfile.mkdtemp(prefix="finetune-cluster-"))
        self._kubeconfigs: dict[tuple[str, tuple[str, ...]], Path] = {}

    def close(self) -> None:
        """Remove what was written to the working folder (the cluster itself is not touched)."""
        shutil.rmtree(self.work_dir, ignore_errors=True)

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig that authenticates as a user of groups; no rights come with it."""
        identity = (user, tuple(groups))
        if identity not in self._kubeconfigs:
            certificate, key = self._client_certificate(user, groups)
            admin = yaml.safe_load(self.admin_kubeconfig.read_text())
            current = next(entry["context"] for entry in admin["contexts"] if entry["name"] == admin["current-context"])
            cluster = next(entry["cluster"] for entry in admin["clusters"] if entry["name"] == current["cluster"])
            name = f"{re.sub(r'[^A-Za-z0-9.-]', '-', user)}-{len(self._kubeconfigs)}.kubeconfig"
            path = self.work_dir / name
            write_kubeconfig(path, cluster, user, certificate, key)
            self._kubeconfigs[identity] = path
        return self._kubeconfigs[identity]

    def api(self, user: str | None = None, groups: Sequence[str] = ()) -> client.ApiClient:
        """A new API client of the synchronous library, as the administrator or as a user."""
        path = self.admin_kubeconfig if user is None else self.kubeconfig(user, groups)
        return config.new_client_from_config(str(path))

    def kubectl(
        self,
        *args: str | Path,
        input: str | None = None,
        user: str | None = None,
        groups: Sequence[str] = (),
        check: bool = True,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator or as a user; output and errors are text on the result.

        Raises:
            AssertionError: it failed and ``check`` is true; the message is what kubectl said.
        """
        path = self.admin_kubeconfig if user is None else self.kubeconfig(user, groups)
        command = [str(self._kubectl()), "--kubeconfig", str(path), *map(str, args)]
        done = subprocess.run(
            command,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"kubectl {' '.join(map(str, args))} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def apply(self, manifests: str | dict[str, object] | Iterable[dict[str, object]], **kwargs: object) -> None:
        """Server-side apply YAML text, one object or several."""
        if isinstance(manifests, str):
            text = manifests
        else:
            objects = [manifests] if isinstance(manifests, dict) else list(manifests)
            text = yaml.safe_dump_all(objects)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text, **kwargs)  # type: ignore[arg-type]

    def apiserver_metrics(self) -> list[RequestCount]:
        """Every request the API server has answered so far; subtract two calls to count those in between."""
        text = self.kubectl("get", "--raw", "/metrics").stdout
        found = []
        for line in re.finditer(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line[1]))
            found.append(
                RequestCount(
                    verb=labels["verb"],
                    group=labels["group"],
                    resource=labels["resource"],
                    subresource=labels["subresource"],
                    code=int(labels["code"]),
                    count=int(float(line[2])),
                )
            )
        return found

    def _kubectl(self) -> Path:
        return binary("kubernetes", "kubectl")

    def _client_certificate(self, user: str, groups: Sequence[str]) -> tuple[bytes, bytes]:
        """Have the cluster sign a certificate; needs the right to approve requests for this signer."""
        request, key = signing_request(user, groups)
        api = self.api()
        certificates = client.CertificatesV1Api(api)
        name = f"finetune-test-{secrets.token_hex(6)}"
        body = client.V1CertificateSigningRequest(
            metadata=client.V1ObjectMeta(name=name),
            spec=client.V1CertificateSigningRequestSpec(
                request=base64.b64encode(request).decode(),
                signer_name=CLIENT_SIGNER,
                usages=["client auth"],
                expiration_seconds=86_400,
            ),
        )
        created = certificates.create_certificate_signing_request(body)
        approval = client.V1CertificateSigningRequestCondition(
            type="Approved", status="True", reason="ClusterTests", message="a user of the test suite"
        )
        created.status = client.V1CertificateSigningRequestStatus(conditions=[approval])
        certificates.replace_certificate_signing_request_approval(name, created)
        signed = wait_for(
            lambda: certificates.read_certificate_signing_request(name).status.certificate,
            30,
            f"a certificate for {user}",
        )
        certificates.delete_certificate_signing_request(name)
        return base64.b64decode(signed), key


@contextlib.contextmanager
def given_cluster() -> Iterator[Cluster | None]:
    """The cluster that the person who runs the tests has chosen, if any.

    Raises:
        FileNotFoundError: the variable names no file.
    """
    path = os.environ.get(UNDER_TEST)
    if not path:
        yield None
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{UNDER_TEST}={path}: there is no such file")
    cluster = Cluster(Path(path))
    try:
        yield cluster
    finally:
        cluster.close()


def write_kubeconfig(path: Path, cluster: dict[str, object], user: str, certificate: bytes, key: bytes) -> None:
    """Write a kubeconfig with one cluster and one user of a client certificate (PEM)."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": base64.b64encode(certificate).decode(),
                    "client-key-data": base64.b64encode(key).decode(),
                },
            }
        ],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }
    path.touch(0o600)
    path.write_text(yaml.safe_dump(content))
