"""The only file that talks to the API server: a thin asynchronous client with retries and a guard on every write."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from finetune_operator.connection import Connection

REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 5
FIRST_DELAY_S = 0.5
LARGEST_DELAY_S = 8.0
PAGE = 500
RETRIED = frozenset({429, 500, 502, 503, 504})
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Resource:
    """A kind of object as the API's paths know it."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of a collection, an object or its subresource."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


FINETUNE_JOBS = Resource("finetune.dev", "v1alpha1", "finetunejobs")
GPU_POOLS = Resource("finetune.dev", "v1alpha1", "gpupools", namespaced=False)
ADAPTERS = Resource("finetune.dev", "v1alpha1", "adapters")
ADAPTER_VERSIONS = Resource("finetune.dev", "v1alpha1", "adapterversions")
JOBS = Resource("batch", "v1", "jobs")
PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
EVENTS = Resource("events.k8s.io", "v1", "events")
NODES = Resource("", "v1", "nodes", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", namespaced=False)


KUEUE_GROUP = "kueue.x-k8s.io"


def workloads(version: str) -> Resource:
    """Kueue's Workloads in a version of their API."""
    return Resource(KUEUE_GROUP, version, "workloads")


class ApiError(Exception):
    """The API server refused or could not be reached (status 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        """Keep what the server's Status object says."""
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def refused(self) -> bool:
        """Whether trying the same again is pointless until somebody changes something."""
        return 400 <= self.status < 500 and self.status not in (404, 408, 409, 429)


def _error(status: int, body: bytes, retry_after: str | None) -> ApiError:
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    delay_s = float(retry_after) if retry_after and retry_after.isdigit() else None
    message = str(told.get("message") or body[:300].decode(errors="replace"))
    return ApiError(status, str(told.get("reason", "")), message, delay_s)


class Api:
    """One pooled session. Every write first asks `guard`, which raises when this process may not write (any more)."""

    def __init__(
        self,
        connection: Connection,
        guard: Callable[[], None] = lambda: None,
        on_request: Callable[[str, str, int], None] = lambda verb, resource, status: None,
        field_manager: str = "finetune-operator",
    ) -> None:
        """`on_request` is told verb, resource and status of every answer; `field_manager` signs every write."""
        self._connection = connection
        self.guard = guard
        self._on_request = on_request
        self._signed = {"fieldManager": field_manager}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        connector = aiohttp.TCPConnector(ssl=self._connection.ssl_context(), limit=32)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: object,
        content_type: str,
        accept: str,
        timeout_s: float,
    ) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("the client is not open")
        headers = {"Accept": accept}
        token = self._connection.token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._session.request(
                method,
                self._connection.server + path,
                params=query,
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                content = await response.read()
                self._on_request(method, path, response.status)
                if response.status >= 400:
                    raise _error(response.status, content, response.headers.get("Retry-After"))
                answer: dict[str, Any] = json.loads(content)
                return answer
        except TimeoutError as error:
            raise ApiError(0, "Timeout", f"{method} {path}: no answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error}") from error

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = REQUEST_TIMEOUT_S,
        attempts: int = ATTEMPTS,
        guarded: bool = True,
    ) -> dict[str, Any]:
        """Send and return the answer. Raises ApiError.

        Overload, server errors and broken connections are tried again: every write of the operator names its object
        or carries a precondition, so that a second arrival changes nothing.
        """
        delay_s = FIRST_DELAY_S
        for attempt in range(1, attempts + 1):
            if guarded and method != "GET":
                self.guard()
            try:
                return await self._once(method, path, query or {}, body, content_type, accept, timeout_s)
            except ApiError as error:
                if attempt == attempts or not (error.status == 0 or error.status in RETRIED):
                    raise
                wait_s = error.retry_after_s if error.retry_after_s is not None else delay_s * random.uniform(0.5, 1.5)  # noqa: S311
                await asyncio.sleep(min(wait_s, REQUEST_TIMEOUT_S))
                delay_s = min(LARGEST_DELAY_S, delay_s * 2)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def served_version(self, group: str, plural: str) -> str:
        """The preferred version of an API group, if it has this kind of object; empty where the cluster has not.

        Raises:
            ApiError: the API server did not say.
        """
        try:
            told = await self.request("GET", f"/apis/{group}", attempts=1)
            version = str(told["preferredVersion"]["version"])
            kinds = await self.request("GET", f"/apis/{group}/{version}", attempts=1)
        except ApiError as error:
            if error.status == 404:
                return ""
            raise
        return version if any(kind["name"] == plural for kind in kinds["resources"]) else ""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """Read one object."""
        return await self.request("GET", resource.path(namespace, name))

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        selector: str = "",
        limit: int = PAGE,
        *,
        metadata_only: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """Lists of at most `limit` objects until all were read."""
        accept = METADATA_ONLY if metadata_only else "application/json"
        query = {"limit": str(limit)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self.request("GET", resource.path(namespace), query=query, accept=accept)
            yield page
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        """POST one object; its metadata says where."""
        path = resource.path(body["metadata"].get("namespace"))
        return await self.request("POST", path, query=self._signed, body=body)

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: dict[str, Any]
    ) -> dict[str, Any]:
        """Merge-patch the status subresource."""
        path = resource.path(namespace, name, "status")
        return await self.request("PATCH", path, query=self._signed, body=patch, content_type=MERGE_PATCH)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, propagation: str, *, grace_s: int | None = None
    ) -> dict[str, Any]:
        """Delete the object of this uid and no other. `grace_s=0` does not wait for the node."""
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": propagation,
        }
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        return await self.request("DELETE", resource.path(namespace, name), body=body)
