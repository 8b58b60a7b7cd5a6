"""`python -m tests.cluster.harness.images`, which `make test` calls before the tests."""

from __future__ import annotations

import pytest

from tests.cluster.harness import images
from tests.cluster.harness.images.__main__ import main
from tests.images.conftest import Containers


def test_by_default_it_builds_both(containers: Containers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.split() == [images.built("operator").image, images.built("runner").image]


def test_a_machine_without_the_programs_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["--where-possible"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("images: not built: not installed: apt, buildah, containerd, debootstrap, runc")
    assert len(said.splitlines()) == 1
    assert main(["operator"]) == 1
    assert "make node-deps" in capsys.readouterr().err


def test_an_ordinary_user_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert images.missing() == "images are built by root: they hold files of other users"


def test_an_unknown_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["oprator"])
    assert "no target oprator: there are operator, runner, base" in capsys.readouterr().err
