"""The certificate as a runner would judge it: real files, real handshakes, and what the operator makes of a change."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_cli.certificates import new_authority
from finetune_operator.api import Api
from finetune_operator.connection import Connection
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.progress.certificate import Files, UnusableCertificate, judge
from finetune_operator.progress.service import ProgressService, Settings
from finetune_operator.store import Store
from tests.cluster.harness.progress import HOST, ProgressCertificate


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def certificate(tmp_path: Path) -> ProgressCertificate:
    return ProgressCertificate(tmp_path / "tls")


def test_a_good_one(certificate: ProgressCertificate) -> None:
    certificate.issue(lifetime=timedelta(days=30))
    judged = judge(Files.of(certificate.folder, None), HOST)
    assert abs(judged.expires_at - (now() + timedelta(days=30)).timestamp()) < 60
    assert judged.ca.startswith("-----BEGIN CERTIFICATE-----")


def broken(certificate: ProgressCertificate, how: str) -> None:
    certificate.issue()
    if how == "expired":
        certificate.expire()
    elif how == "early":
        certificate.issue(started=now() + timedelta(days=2))
    elif how == "name":
        certificate.issue(hosts=("elsewhere.example.com",))
    elif how == "authority":
        certificate.issue(authority=new_authority(now()))
    elif how == "pair":
        key = (certificate.folder / "tls.key").read_bytes()
        certificate.issue()
        certificate.write("tls.key", key)
    elif how == "no-ca":
        (certificate.folder / "ca.crt").unlink()
    elif how == "no-key":
        (certificate.folder / "tls.key").unlink()
    elif how == "ca-garbage":
        certificate.write("ca.crt", b"\xff garbage")
    elif how == "ca-huge":
        certificate.write("ca.crt", (certificate.folder / "ca.crt").read_bytes() * 200)
    elif how == "garbage":
        certificate.write("tls.crt", b"garbage")


BROKEN = [
    ("expired", "certificate has expired"),
    ("early", "not yet valid"),
    ("name", "Hostname mismatch"),
    ("authority", "certificate"),
    ("pair", "do not belong together"),
    ("no-ca", "ca.crt: No such file"),
    ("no-key", "tls.key: No such file"),
    ("ca-garbage", "must be PEM"),
    ("ca-huge", "larger than"),
    ("garbage", "renew the certificate"),
]


@pytest.mark.parametrize(("how", "told"), BROKEN)
def test_one_that_no_runner_would_accept(certificate: ProgressCertificate, how: str, told: str) -> None:
    broken(certificate, how)
    files = Files.of(certificate.folder, None)

    def take() -> None:
        files.content()
        judge(files, HOST)

    with pytest.raises(UnusableCertificate, match=told) as error:
        take()
    assert "\n" not in str(error.value)


def test_an_authority_elsewhere(certificate: ProgressCertificate, tmp_path: Path) -> None:
    certificate.issue()
    ca = (certificate.folder / "ca.crt").rename(tmp_path / "company.pem")
    assert judge(Files.of(certificate.folder, ca), HOST).ca == ca.read_text()


class Part:
    """The service, looked at by hand."""

    def __init__(self, folder: Path) -> None:
        self.health = Health(lambda: 0.0)
        self.metrics = Metrics()
        self.now = now()
        api = Api(Connection("http://127.0.0.1:1"))
        settings = Settings("https://localhost:8443", 8443, folder)
        self.service = ProgressService(
            settings, api, Store(), self.health, self.metrics, lambda: True, lambda: self.now, lambda: 0.0
        )

    def look(self) -> str:
        self.service.look()
        return " ".join(self.health.warnings)

    @property
    def expiry(self) -> float:
        value = self.metrics.registry.get_sample_value("finetune_progress_certificate_expiry_timestamp_seconds")
        assert value is not None
        return value


def test_off_without_a_certificate_and_on_when_it_comes(
    certificate: ProgressCertificate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    part = Part(certificate.folder)
    assert [part.look() for _ in range(3)] == ["", "", ""]
    assert part.service.offered() is None
    assert [record.message for record in caplog.records] == ["live progress is off: no certificate"]
    certificate.issue()
    assert part.look() == ""
    offered = part.service.offered()
    assert offered is not None
    assert (offered.url, offered.ca) == ("https://localhost:8443", (certificate.folder / "ca.crt").read_text())
    assert part.expiry > now().timestamp()
    assert [record.message for record in caplog.records][1:] == ["live progress is on"]


def test_an_expired_one_is_told_in_one_line_takes_nobody_out_of_service_and_is_mended(
    certificate: ProgressCertificate, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part(certificate.folder)
    certificate.issue()
    part.look()
    certificate.expire()
    assert "certificate has expired; renew the certificate" in part.look()
    part.look()
    assert len([record for record in caplog.records if "expired" in record.message]) == 1
    assert part.expiry == 0
    assert part.health.reasons == ["the watches have not started yet"]
    assert part.service.offered() is not None, "pods that start now work once it is renewed"
    certificate.issue()
    assert part.look() == ""
    assert part.expiry > 0


def test_one_that_expires_within_a_week_is_warned_about(certificate: ProgressCertificate) -> None:
    part = Part(certificate.folder)
    certificate.issue(lifetime=timedelta(days=30))
    assert part.look() == ""
    part.now += timedelta(days=24)
    assert "expires in 144 h; renew the certificate" in part.look()


def test_one_that_vanishes_is_told(certificate: ProgressCertificate) -> None:
    part = Part(certificate.folder)
    certificate.issue()
    part.look()
    certificate.remove()
    assert "is gone; restore the Secret" in part.look()


def test_a_broken_renewal_leaves_the_old_one_in_use(certificate: ProgressCertificate) -> None:
    part = Part(certificate.folder)
    certificate.issue()
    part.look()
    before = part.service._context
    broken(certificate, "pair")
    assert "do not belong together" in part.look()
    assert isinstance(before, ssl.SSLContext)
    assert part.service._context is before
