"""The only file that sends requests to an API server: JSON in, JSON out, time-outs on everything.

The official client brings authentication (exec plugins, tokens, certificates, proxies); its models are left out,
because an object that another version wrote must still be shown.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_cli.cluster.refusals import Refusal, refusal_of
from finetune_cli.cluster.resources import Resource

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
WATCH_S = 240
"""A watch is ended by the server after this time, and by us when it is silent for longer: half-open connections."""
POLICIES_READY_S = 45.0
POLICIES_POLL_S = 1.0
"""The API server looks for new kinds every 30 s; until it knows ours, policies about them refuse every write."""
PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')

JSON = dict[str, Any]


class Api:
    """Requests of one caller to one API server. Every method raises `Refusal` when the answer is not what was asked."""

    def __init__(
        self,
        client: Any,
        on_warning: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`client` is a kubernetes.client.ApiClient; `on_warning` is told what the server warns of.

        `clock` gives seconds that only grow, `pause` lets them pass.
        """
        self._client = client
        self._on_warning = on_warning
        self._clock = clock
        self._pause = pause
        self.server = str(client.configuration.host)

    def get(self, resource: Resource, namespace: str | None, name: str) -> JSON:
        """One object."""
        return self._json("GET", resource.path(namespace, name))

    def list(self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "") -> JSON:
        """All objects, as one List whatever their number (`metadata.resourceVersion` is where a watch goes on)."""
        query = _selectors(labels, fields) | {"limit": str(PAGE)}
        items: list[JSON] = []
        while True:
            page = self._json("GET", resource.path(namespace), query)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return page | {"items": items}
            query["continue"] = metadata["continue"]

    def table(self, resource: Resource, namespace: str | None) -> JSON:
        """All objects as the server prints them for `kubectl get`."""
        return self._json("GET", resource.path(namespace), {"includeObject": "Metadata"}, accept=TABLE)

    def create(self, resource: Resource, namespace: str | None, body: JSON) -> JSON:
        """POST an object."""
        return self._write("POST", resource.path(namespace), body=body)

    def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: JSON | Sequence[JSON],
        content_type: str = MERGE_PATCH,
        query: Mapping[str, str] | None = None,
    ) -> JSON:
        """PATCH an object; returns it as stored."""
        path = resource.path(namespace, name)
        return self._write("PATCH", path, query, body=body, content_type=content_type)

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        resource_version: str,
        *,
        fields: str = "",
        seconds: int = WATCH_S,
    ) -> Iterator[tuple[str, JSON]]:
        """Changes after a resourceVersion as (ADDED | MODIFIED | DELETED | BOOKMARK, object), until the server ends it.

        Raises Refusal: with code 410 when the version is too old, with 0 when the connection breaks.
        """
        query = _selectors("", fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        for line in self._lines(resource.path(namespace), query, seconds + READ_TIMEOUT_S):
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise Refusal(int(status.get("code") or 500), str(status.get("reason", "")), str(status.get("message")))
            yield event["type"], event["object"]

    def log_lines(self, path: str, query: Mapping[str, str], silence_s: float) -> Iterator[bytes]:
        """Lines of a pod's log, each with its line feed; ends with the log, or breaks after a silence."""
        return self._lines(path, query, silence_s)

    def _write(self, method: str, path: str, query: Mapping[str, str] | None = None, **content: Any) -> JSON:
        """A request that admission policies judge: repeated while they cannot, which is no verdict."""
        end, told = self._clock() + POLICIES_READY_S, False
        while True:
            try:
                return self._json(method, path, query, **content)
            except Refusal as refusal:
                if not refusal.unready or self._clock() >= end:
                    raise
            if not told:
                self._on_warning(
                    "the API server's admission policies do not know our kinds yet, as for half a minute after an "
                    "installation or a restart: waiting for them"
                )
                told = True
            self._pause(POLICIES_POLL_S)

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> JSON:
        response = self._send(method, path, query, body, content_type, accept, READ_TIMEOUT_S)
        try:
            value = json.loads(response.read())
        except ValueError as error:
            raise Refusal(
                0, "", f"its answer is not JSON ({error}); is {self.server} a Kubernetes API server?"
            ) from error
        finally:
            response.release_conn()
        if not isinstance(value, dict):
            raise Refusal(0, "", f"its answer is no object; is {self.server} a Kubernetes API server?")
        return value

    def _lines(self, path: str, query: Mapping[str, str], silence_s: float) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        response = self._send("GET", path, query, None, "", "application/json, */*", silence_s)
        rest = b""
        try:
            # Chunks as they come: a line is shown when it is written, not when a buffer is full.
            for chunk in response.stream(amt=None, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line + b"\n" for line in lines)
            if rest:
                yield rest
        except (HTTPError, OSError) as error:
            raise Refusal(0, "", _reason(error)) from error
        finally:
            response.close()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        accept: str,
        silence_s: float,
    ) -> Any:
        """The urllib3 response, unread; errors of the transport and error answers are raised."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        try:
            request = self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=(CONNECT_TIMEOUT_S, silence_s)).response
            if response.status >= 400:
                raise refusal_of(response.status, response.data)
        except ApiException as error:
            raise Refusal(0, "", " ".join(str(error.reason).split())) from error
        except (HTTPError, OSError) as error:
            raise Refusal(0, "", _reason(error)) from error
        for header in response.headers.getlist("Warning"):
            for text in _WARNING.findall(header):
                self._on_warning(text.replace('\\"', '"'))
        return response


def _selectors(labels: str, fields: str) -> dict[str, str]:
    named = {"labelSelector": labels, "fieldSelector": fields}
    return {name: value for name, value in named.items() if value}


def _reason(error: Exception) -> str:
    """The innermost reason of a transport error, in few words."""
    inner: object = error
    while (nested := getattr(inner, "reason", None)) is not None and isinstance(nested, Exception):
        inner = nested
    text = str(inner).strip() or type(inner).__name__
    # urllib3 puts the object's repr in front.
    return re.sub(r"^.*?object at 0x[0-9a-f]+>: |^<[^>]*>: |^HTTPS?Connection[A-Za-z]*\([^)]*\): ", "", text)
