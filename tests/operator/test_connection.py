"""How the cluster is found, and what is said when it is not."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.connection import NoConnectionError, connect, from_kubeconfig


def kubeconfig(folder: Path, user: dict[str, Any] | None = None, **changes: Any) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://example.com:6443/"}}],
        "users": [{"name": "u", "user": user or {}}],
    } | changes
    file = folder / "config"
    file.write_text(yaml.safe_dump(content))
    return file


def test_certificates_come_inline_or_from_files_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(b"KEY")
    user = {"client-certificate-data": base64.b64encode(b"CERT").decode(), "client-key": "key.pem"}
    connection = from_kubeconfig(kubeconfig(tmp_path, user))
    assert (connection.certificate, connection.key) == (b"CERT", b"KEY")
    assert connection.server == "https://example.com:6443"
    assert connection.namespace == "team-a"
    assert connection.token() == ""


def test_a_rotated_token_is_read_anew(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    connection = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert connection.token() == "first"
    token.write_text("second\n")
    assert connection.token() == "second"


@pytest.mark.parametrize(
    ("user", "changes", "told"),
    [
        ({"exec": {"command": "x"}}, {}, "exec plugin is not supported"),
        ({}, {"current-context": "gone"}, "no context named 'gone'"),
        ({}, {"clusters": []}, "no cluster named 'c'"),
        ({"client-key": "missing.pem"}, {}, "missing.pem"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, user: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(NoConnectionError, match=told):
        from_kubeconfig(kubeconfig(tmp_path, user, **changes))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\t"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(NoConnectionError, match="config"):
        from_kubeconfig(file)


def test_without_any_cluster_the_ways_to_name_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(NoConnectionError, match="--kubeconfig"):
        connect(None)
