"""The images as they are built: what is in them, and that they run the way pods run them."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.cluster.harness import images
from tests.cluster.harness.images import OPERATOR, RUNNER, BuiltImage
from tests.images.conftest import Containers

ROOT = Path(__file__).parents[2]
NAMES = {"operator": OPERATOR, "runner": RUNNER}
pytestmark = pytest.mark.timeout(1800)  # whoever comes first builds gigabytes

# Every library that torch's and bitsandbytes' libraries are linked to must be found; the driver comes from the node.
LINKED = """
import ctypes, json, pathlib, torch, bitsandbytes
folders = [pathlib.Path(torch.__file__).parent / "lib", pathlib.Path(bitsandbytes.__file__).parent]
refused = {}
for folder in folders:
    for library in sorted(folder.glob("*.so")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            refused[library.name] = str(error)
print(json.dumps(refused))
"""


@pytest.fixture(params=["operator", "runner"])
def image(request: pytest.FixtureRequest, containers: Containers) -> BuiltImage:
    return images.built(request.param)


def test_labels_say_version_and_commit(image: BuiltImage) -> None:
    labels = image.layout.config(image.image)["config"]["Labels"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert found["title"] == f"finetune-{image.target}"
    assert found["version"] == project["version"]
    assert found["licenses"] == project["license"]
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["revision"])
        assert re.match(r"\d{4}-\d\d-\d\dT", found["created"])


def test_make_labels_an_image_with_the_version_it_is_given(containers: Containers) -> None:
    """Also where every layer comes from the cache of another version's build."""
    name = f"localhost/test-{secrets.token_hex(5)}"
    buildah = images.Buildah(images.folder())
    for version in ("1.2.3", "1.2.4"):
        arguments = ["BASE=local", "BUILDER=buildah", f"REGISTRY={name}", f"VERSION={version}", "REVISION=abc"]
        subprocess.run(["make", "image-operator", *arguments], cwd=ROOT, check=True, capture_output=True)
        image = f"{name}/finetune-operator:{version}"
        labels = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]["Labels"]
        buildah("rmi", image)
        assert labels["org.opencontainers.image.version"] == version
        assert labels["org.opencontainers.image.revision"] == "abc"


def test_it_runs_as_a_fixed_user_that_is_not_root(image: BuiltImage) -> None:
    config = image.layout.config(image.image)["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == [f"finetune-{image.target}"]


def test_the_code_is_a_small_layer_on_top(image: BuiltImage) -> None:
    sizes_bytes = image.layout.layer_sizes_bytes(image.image)
    assert sizes_bytes[-1] < 5e6
    assert max(sizes_bytes) > 10 * sizes_bytes[-1]


def test_help_runs_on_a_read_only_root(containers: Containers, image: BuiltImage) -> None:
    command = f"finetune-{image.target}"
    assert f"usage: {command}" in containers.output(NAMES[image.target], command, "--help")


def test_only_tmp_can_be_written(containers: Containers, image: BuiltImage) -> None:
    script = "id -u; for f in /opt/code /opt/finetune / /var/tmp /tmp; do touch $f/x 2>/dev/null && echo $f; done; true"
    assert containers.output(NAMES[image.target], "sh", "-c", script).split() == ["65532", "/tmp"]


def test_it_has_no_compiler_and_no_installer(containers: Containers, image: BuiltImage) -> None:
    tools = ("cc", "gcc", "g++", "c++", "clang", "nvcc", "make", "git", "pip", "uv", "hatchling")
    script = f"for tool in {' '.join(tools)}; do command -v $tool; done; true"
    assert containers.output(NAMES[image.target], "sh", "-c", script) == ""


def test_it_has_the_other_image_s_code_not(containers: Containers, image: BuiltImage) -> None:
    found = json.loads(
        containers.output(
            NAMES[image.target], "python", "-c",
            "import importlib.util, json; print(json.dumps([name for name in ('finetune_api', 'finetune_operator', "
            "'finetune_runner', 'finetune_cli', 'torch', 'kopf', 'boto3') if importlib.util.find_spec(name)]))",
        )
    )  # fmt: skip
    want = {
        "operator": ["finetune_api", "finetune_operator", "kopf"],
        "runner": ["finetune_api", "finetune_runner", "torch", "boto3"],
    }
    assert found == want[image.target]


def test_bytecode_is_there_and_used(containers: Containers, image: BuiltImage) -> None:
    """Without it every start of a stage compiles torch anew: nothing can be written on a read-only root."""
    package = f"finetune_{image.target}.main"
    script = (
        f"import importlib, pathlib; module = importlib.import_module('{package}'); "
        "flags = pathlib.Path(module.__cached__).read_bytes()[4:8]; print(int.from_bytes(flags, 'little'))"
    )
    unchecked_hash = "1"  # PEP 552
    assert containers.output(NAMES[image.target], "python", "-c", script).strip() == unchecked_hash


def test_the_runner_imports_its_stack(containers: Containers) -> None:
    script = "import torch, transformers, peft, bitsandbytes, deepspeed, pyarrow; print(torch.version.cuda)"
    assert re.search(r"^\d+\.\d+$", containers.output(RUNNER, "python", "-c", script), re.MULTILINE)


def test_every_library_of_torch_and_bitsandbytes_finds_what_it_is_linked_to(containers: Containers) -> None:
    refused = json.loads(containers.output(RUNNER, "python", "-c", LINKED).splitlines()[-1])
    assert {name: why for name, why in refused.items() if "libcuda.so.1" not in why} == {}


def test_the_archive_holds_the_image_under_its_name(containers: Containers) -> None:
    with tarfile.open(images.operator_image()) as archive:
        index = archive.extractfile("index.json")
        assert index
        manifests = json.load(index)["manifests"]
        names = {member.name for member in archive}
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in manifests] == [OPERATOR]
    built = images.built("operator")
    assert {f"blobs/{digest.replace(':', '/')}" for digest in built.layout.blobs(built.image)} < names
