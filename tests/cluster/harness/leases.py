"""Signs of life of hand-made nodes, for clusters whose controller asks for them."""

from __future__ import annotations

import contextlib
import datetime
import threading

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

_NAMESPACE = "kube-node-lease"
_PERIOD_S = 10
"""As the kubelet renews its own; the controller waits for four periods and more."""


class Leases:
    """Renews the Lease of every node that was added, in the background, until the process ends."""

    def __init__(self, api: client.ApiClient) -> None:
        """Use a client of the administrator's."""
        self._leases = client.CoordinationV1Api(api)
        self._names: set[str] = set()
        self._thread: threading.Thread | None = None

    def add(self, name: str) -> None:
        """Say that a node lives, now and from now on."""
        spec = client.V1LeaseSpec(holder_identity=name, lease_duration_seconds=4 * _PERIOD_S, renew_time=_now())
        lease = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=spec)
        self._leases.create_namespaced_lease(_NAMESPACE, lease)
        self._names.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew_for_ever, name="node-leases", daemon=True)
            self._thread.start()

    def remove(self, name: str) -> None:
        """Say no more that a node lives."""
        if name in self._names:
            self._names.discard(name)
            with contextlib.suppress(ApiException):  # its node's deletion may have taken it along
                self._leases.delete_namespaced_lease(name, _NAMESPACE)

    def _renew_for_ever(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PERIOD_S):
            for name in tuple(self._names):
                # A cluster that is away for a moment is asked again in the next round, as a kubelet does.
                with contextlib.suppress(ApiException, urllib3.exceptions.HTTPError):
                    self._leases.patch_namespaced_lease(name, _NAMESPACE, {"spec": {"renewTime": _now()}})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
