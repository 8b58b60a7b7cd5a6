"""Pushing progress: the newest only, in the background, and nothing that goes wrong there reaches the stage."""

from __future__ import annotations

import http.server
import json
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.stages import PHASE_LIMIT, Progress
from finetune_runner import progress_push
from finetune_runner.progress_push import Answer, ProgressPush, send
from tests.cluster.harness.process import LOOPBACK, free_ports
from tests.cluster.harness.progress import ProgressCertificate
from tests.cluster.harness.waiting import wait_for

DEADLINE_S = 30


def said(step: int) -> Progress:
    return Progress(stage="train", attempt=1, step=step, total_steps=100, percent=float(step))


@dataclass
class Heard:
    """A real HTTPS server that writes down what it hears and answers as it is told."""

    url: str
    folder: Path
    certificate: ProgressCertificate
    pushes: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Path, Authorization, body."""
    answers: queue.Queue[tuple[int, dict[str, str]]] = field(default_factory=queue.Queue)
    """Used up before 202."""


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    certificate = ProgressCertificate(tmp_path / "tls")
    certificate.issue()
    folder = tmp_path / "progress"
    folder.mkdir()
    (folder / "ca.crt").write_bytes((certificate.folder / "ca.crt").read_bytes())
    (folder / "token").write_text("token-1\n")
    port = free_ports(1)[0]
    made = Heard(f"https://localhost:{port}/v1/progress/team-a/support", folder, certificate)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.pushes.append((self.path, self.headers["Authorization"], body))
            code, headers = (202, {}) if made.answers.empty() else made.answers.get()
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"a sentence\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer((LOOPBACK, port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.folder / "tls.crt", certificate.folder / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def pusher(heard: Heard, **options: Any) -> ProgressPush:
    options = {"every_s": 0.0, "first_backoff_s": 0.0} | options
    return ProgressPush(lambda body: send(heard.url, heard.folder, body), **options)


def test_the_first_and_the_last_arrive_with_the_token_of_now(heard: Heard) -> None:
    push = pusher(heard, every_s=3600.0)
    push(said(1))
    wait_for(lambda: len(heard.pushes) == 1, DEADLINE_S, "the first push")
    (heard.folder / "token").write_text("token-2\n")
    for step in range(2, 10):
        push(said(step))
    push.close(DEADLINE_S)
    assert [(path, token) for path, token, _ in heard.pushes] == [
        ("/v1/progress/team-a/support", "Bearer token-1"),
        ("/v1/progress/team-a/support", "Bearer token-2"),
    ]
    assert [Progress.from_wire(body) for _, _, body in heard.pushes] == [said(1), said(9)]


@pytest.mark.parametrize("code", [401, 403, 409])
def test_refusals_end_the_pushes_with_one_line(heard: Heard, code: int, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        heard.answers.put((code, {}))
    push = pusher(heard)
    for step in range(progress_push.REFUSALS):
        push(said(step))
        wait_for(lambda count=step + 1: len(heard.pushes) == count, DEADLINE_S, "a push")  # type: ignore[misc]
    wait_for(lambda: "no longer pushed" in caplog.text, DEADLINE_S, "the pushes to end")
    for step in range(5):
        push(said(step))
    push.close(DEADLINE_S)
    assert len(heard.pushes) == progress_push.REFUSALS
    assert [record.message for record in caplog.records if "no longer" in record.message] == [
        f"progress is no longer pushed: {code} a sentence"
    ]
    assert "token-1" not in caplog.text


@pytest.mark.parametrize("code", [404, 429, 500, 503])
def test_trouble_is_tried_again_and_told_once(heard: Heard, code: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(progress_push.REFUSALS + 2):
        heard.answers.put((code, {}))
    push = pusher(heard)

    def until_well() -> bool:
        push(said(len(heard.pushes)))
        return "pushed again" in caplog.text

    wait_for(until_well, DEADLINE_S, "the pushes to work again", poll_s=0.02)
    push.close(DEADLINE_S)
    assert len([record for record in caplog.records if "not pushed" in record.message]) == 1


def test_how_long_it_waits() -> None:
    """Each pause as the thread asks for it; the clock is the test's."""
    answers = [Answer(202, "")] + [Answer(0, "refused")] * 7 + [Answer(429, "slow", 120.0), Answer(202, "")]
    pauses: list[float] = []
    left = iter(answers)
    done = threading.Event()

    class Patient(ProgressPush):
        def _pause(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == len(answers):
                done.set()
            else:
                self(said(len(pauses)))

    push = Patient(lambda _body: next(left))
    push(said(0))
    assert done.wait(DEADLINE_S)
    assert pauses == [10.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 10.0]


def nobody_listens(heard: Heard) -> str:
    return f"https://localhost:{free_ports(1)[0]}/v1/progress/team-a/support"


def another_authority(heard: Heard) -> str:
    other = ProgressCertificate(heard.folder.parent / "other")
    other.issue()
    (heard.folder / "ca.crt").write_bytes((other.folder / "ca.crt").read_bytes())
    return heard.url


def no_authority(heard: Heard) -> str:
    (heard.folder / "ca.crt").unlink()
    return heard.url


def no_token(heard: Heard) -> str:
    (heard.folder / "token").unlink()
    return heard.url


def broken_token(heard: Heard) -> str:
    (heard.folder / "token").write_text("secret-part\r\nX-Evil: 1")
    return heard.url


def plain_http(heard: Heard) -> str:
    """A server that answers a TLS greeting with something else."""
    listener = socket.create_server((LOOPBACK, 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    return f"https://localhost:{listener.getsockname()[1]}/x"


UNHEARD = [
    (nobody_listens, "refused"),
    (another_authority, "CERTIFICATE_VERIFY_FAILED"),
    (no_authority, "No such file"),
    (no_token, "No such file"),
    (broken_token, "does not hold a token"),
    (plain_http, "SSL"),
]


@pytest.mark.parametrize(("breaks", "told"), UNHEARD)
def test_a_push_that_nobody_hears_is_an_answer(heard: Heard, breaks: Callable[[Heard], str], told: str) -> None:
    answer = send(breaks(heard), heard.folder, b"{}")
    assert answer.status == 0
    assert told in answer.told
    assert "secret-part" not in answer.told
    assert heard.pushes == []


def test_a_server_that_hangs_holds_up_nobody(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_push, "TIMEOUT_S", 0.2)
    with socket.create_server((LOOPBACK, 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/x"
        sent = threading.Event()
        answers: list[Answer] = []

        def slow(body: bytes) -> Answer:
            answers.append(send(url, heard.folder, body))
            sent.set()
            return answers[-1]

        push = ProgressPush(slow)
        for step in range(1000):
            push(said(step % 100))
        assert sent.wait(DEADLINE_S)
        assert answers[0].status == 0
        assert "timed out" in answers[0].told
        wait_for(lambda: push._troubled, DEADLINE_S, "the trouble to be noted")
        push.close()
        assert len(answers) == 1, "a stage that ends does not try what does not work"


def test_the_end_waits_no_longer_than_it_is_told() -> None:
    never = threading.Event()
    push = ProgressPush(lambda _body: Answer(0, "") if never.wait() else Answer(202, ""))
    push(said(1))
    push.close(0.05)
    push(said(2))
    assert push._newest is None, "nothing is taken after the end"
    never.set()


def test_what_a_stage_says_always_fits(heard: Heard) -> None:
    from finetune_runner.context import printable

    text = printable("fetching s3://bucket/\x1b[2J\n" + "x" * 1000)[:PHASE_LIMIT]
    assert Progress(stage="prepare", phase=text).phase == text
