"""A build that was killed leaves nothing for good, and the next one is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import images
from tests.cluster.harness.images import Buildah


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    if reason := images.missing():
        pytest.skip(reason)
    buildah = Buildah(tmp_path)
    buildah("from", "scratch")  # a working container, as a build has one per stage
    (tmp_path / "tmp" / "layer").write_bytes(b"half")
    assert buildah("containers", "--quiet")
    buildah.clean()
    assert buildah("containers", "--quiet") == ""
    assert list((tmp_path / "tmp").iterdir()) == []
