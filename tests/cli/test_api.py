"""The command line's client against a server that answers as an API server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from finetune_cli.cluster.api import POLICIES_READY_S, Api
from finetune_cli.cluster.refusals import Refusal
from finetune_cli.cluster.resources import FINETUNE_JOBS

UNREADY = {
    "message": "x is forbidden: ValidatingAdmissionPolicy 'finetune-pool-limits' denied request: failed to configure "
    "policy: failed to find resource referenced by paramKind: 'finetune.dev/v1alpha1, Kind=GPUPool'"
}
DENIED = {"message": "x is forbidden: ValidatingAdmissionPolicy 'finetune-pool-limits' denied request: too many GPUs"}


class Passing:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def answering(answers: Iterator[tuple[int, dict[str, Any]]], asked: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            code, body = next(answers)
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: the test tells what was asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def api_at(address: str, told: list[str], clock: Passing) -> Api:
    return Api(ApiClient(Configuration(host=address)), told.append, clock, clock.pause)


def test_policies_that_do_not_know_the_kinds_yet_are_waited_for() -> None:
    asked: list[str] = []
    told: list[str] = []
    with answering(iter([(422, UNREADY), (422, UNREADY), (200, {"kind": "FineTuneJob"})]), asked) as address:
        answer = api_at(address, told, Passing()).patch(FINETUNE_JOBS, "team-a", "x", {"spec": {"suspend": True}})
    assert answer == {"kind": "FineTuneJob"}
    assert len(asked) == 3
    assert len(told) == 1
    assert "admission policies do not know our kinds yet" in told[0]


def test_a_verdict_is_final() -> None:
    asked: list[str] = []
    told: list[str] = []
    with (
        answering(iter([(422, DENIED)]), asked) as address,
        pytest.raises(Refusal, match="too many GPUs"),
    ):
        api_at(address, told, Passing()).patch(FINETUNE_JOBS, "team-a", "x", {})
    assert (len(asked), told) == (1, [])


def test_the_wait_for_policies_ends() -> None:
    asked: list[str] = []
    clock = Passing()
    with (
        answering(iter([(422, UNREADY)] * 100), asked) as address,
        pytest.raises(Refusal, match="failed to configure policy"),
    ):
        api_at(address, [], clock).patch(FINETUNE_JOBS, "team-a", "x", {})
    assert POLICIES_READY_S <= clock.now <= POLICIES_READY_S + 1
