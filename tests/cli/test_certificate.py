"""`finetune certificate`: the Secret it writes works for the operator, and renewing keeps whom runners trust."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_cli.certificates import new_authority, secret_manifest, server_certificate
from finetune_cli.main import main
from finetune_operator.progress.certificate import Files, UnusableCertificate, judge

HOST = "finetune-operator.finetune-system.svc"


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["certificate", *arguments]) == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


def mounted(secret: dict[str, Any], folder: Path) -> Files:
    """The files as the operator's Deployment mounts them."""
    folder.mkdir()
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (folder / name).write_bytes(base64.b64decode(secret["data"][name]))
    return Files.of(folder, None)


def test_a_secret_for_the_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = made(capsys)
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["metadata"]["name"] == "finetune-operator-tls"
    assert secret["metadata"]["namespace"] == "finetune-system"
    files = mounted(secret, tmp_path / "tls")
    judged = judge(files, HOST)
    wanted = datetime.now(UTC) + timedelta(days=365)
    assert abs(judged.expires_at - wanted.timestamp()) < 60
    with pytest.raises(UnusableCertificate, match="Hostname mismatch"):
        judge(files, "finetune-operator.other.svc")


def test_another_namespace_service_and_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = made(capsys, "-n", "ml", "--service", "tuner", "--secret", "tls", "--days", "30")
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("tls", "ml")
    files = mounted(secret, tmp_path / "tls")
    assert judge(files, "tuner.ml.svc").expires_at < (datetime.now(UTC) + timedelta(days=31)).timestamp()


def test_renewing_keeps_the_authority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(capsys, "--days", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(first)))
    second = made(capsys, "--renew", "-")
    assert second["data"]["ca.crt"] == first["data"]["ca.crt"]
    assert second["data"]["tls.crt"] != first["data"]["tls.crt"]
    old = mounted(first, tmp_path / "old")
    judge(Files.of(mounted(second, tmp_path / "new").certificate.parent, old.ca), HOST)


def test_an_authority_that_ends_too_early_is_replaced_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3600)
    authority = new_authority(long_ago)
    certificate, key = server_certificate(authority, [HOST], long_ago, timedelta(days=365))
    present = tmp_path / "secret.yaml"
    present.write_text(yaml.safe_dump(secret_manifest("tls", "finetune-system", authority, certificate, key)))
    assert main(["certificate", "--renew", str(present)]) == 0
    out, err = capsys.readouterr()
    assert "the authority ends too early and is replaced" in err
    judge(mounted(yaml.safe_load(out), tmp_path / "tls"), HOST)


def no_key(secret: dict[str, Any]) -> object:
    del secret["data"]["ca.key"]
    return secret


def foreign_key(secret: dict[str, Any]) -> object:
    return secret | {"data": secret["data"] | {"ca.key": secret["data"]["tls.key"]}}


def broken(secret: dict[str, Any]) -> object:
    return secret | {"data": secret["data"] | {"ca.crt": "bm90aGluZw=="}}


BAD = [
    (no_key, "has no ca.key", "which has to renew it"),
    (foreign_key, "is not the key of ca.crt", "without --renew"),
    (broken, "cannot be read", "without --renew"),
    (lambda secret: {"kind": "ConfigMap", "data": {}}, "not a Secret", "kubectl get secret"),
    (lambda secret: "text", "not a Secret", "kubectl get secret"),
    (lambda secret: None, "not a Secret", "kubectl get secret"),
]


@pytest.mark.parametrize(("change", "told", "fix"), BAD)
def test_what_cannot_be_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, told: str, fix: str
) -> None:
    (tmp_path / "secret.yaml").write_text(yaml.safe_dump(change(made(capsys))))
    assert main(["certificate", "--renew", str(tmp_path / "secret.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert fix in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--days", "0"], "--days is 0"),
        (["--days", "9999"], "from 1 to 825"),
        (["-n", "No/Name"], "--namespace"),
        (["--renew", "missing.yaml"], "No such file"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert main(["certificate", *arguments]) == 2
    assert told in capsys.readouterr().err
