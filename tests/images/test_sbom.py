"""The bill of materials names what is installed, with the version that the lock pins."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cluster.harness import images
from tests.cluster.harness.images.sbom import write_sbom

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # whoever comes first builds syft


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))


def test_the_operators_lists_its_python_and_debian_packages(tmp_path: Path) -> None:
    if reason := images.missing():
        pytest.skip(reason)
    document = json.loads(write_sbom("operator", tmp_path).read_text())
    assert document["spdxVersion"] == "SPDX-2.3"
    assert "Tool: syft-1.57.0" in document["creationInfo"]["creators"]
    packages = {package["name"]: package for package in document["packages"]}
    locked = pins("operator.lock")
    assert packages["kopf"]["versionInfo"] == locked["kopf"]
    assert packages["kopf"]["licenseDeclared"] == "MIT"
    assert packages["pydantic"]["versionInfo"] == locked["pydantic"]
    assert {"python3.11", "ca-certificates", "libc6"} <= packages.keys()
    assert not {"torch", "boto3", "uv", "hatchling"} & packages.keys()
