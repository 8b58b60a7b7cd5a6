"""The operator's arguments about live progress: refused with the fix, or filled in from where it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_operator.main import _arguments, _progress_settings, main
from finetune_operator.progress.service import Settings

FOLDER = Path("/etc/finetune/tls")


@pytest.mark.parametrize(
    "url", ["http://operator:8443", "operator:8443", "https://", "https://user@operator", "https://o/?x=1"]
)
def test_pods_are_given_https_or_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--progress-url", url])
    assert f"--progress-url {url}: write https://HOST[:PORT]" in capsys.readouterr().err


def test_off_by_default() -> None:
    assert _progress_settings(_arguments([]), "ml") is None


def test_the_url_is_that_of_the_service_in_the_own_namespace() -> None:
    arguments = _arguments(["--progress-certificate-dir", str(FOLDER)])
    assert _progress_settings(arguments, "ml") == Settings("https://finetune-operator.ml.svc:8443", 8443, FOLDER)


def test_each_can_be_said() -> None:
    given = ["--progress-certificate-dir", str(FOLDER), "--progress-port", "9443"]
    given += ["--progress-url", "https://progress.example.com", "--progress-ca-file", "/etc/ca.pem"]
    wanted = Settings("https://progress.example.com", 9443, FOLDER, Path("/etc/ca.pem"))
    assert _progress_settings(_arguments(given), "ml") == wanted
