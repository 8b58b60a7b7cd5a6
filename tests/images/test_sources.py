"""What goes into the images, without building them: the Dockerfile, what the builder is sent, keys, what is removed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness.images import sources

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SPEC = importlib.util.spec_from_file_location("unused", ROOT / "requirements" / "unused.py")
assert SPEC
assert SPEC.loader
unused = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(unused)


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name, each with its text."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {
        name: f"FROM {parent}\n{text}" for parent, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def copied(target: str) -> set[str]:
    """What the stages that a target is made of copy from the checkout."""
    made, found, left = stages(), set(), [target]
    while left:
        text = made[left.pop()]
        left += [name for name in re.findall(r"(?:^FROM |--from=)(\S+)", text, re.MULTILINE) if name in made]
        for line in re.findall(r"^COPY ((?:.|\\\n)*?[^\\])$", text, re.MULTILINE):
            words = line.replace("\\\n", " ").split()
            if not words[0].startswith("--from="):
                found |= set(words[:-1])
    return found


@pytest.mark.parametrize("target", ["operator", "runner"])
def test_a_key_covers_everything_that_is_copied(target: str) -> None:
    whole = {"crds": "crds/finetune_api", "operator": "operator/finetune_operator", "runner": "runner/finetune_runner"}
    seen = {whole.get(name, name) for name in copied(target)}
    assert seen | {"Dockerfile", ".dockerignore"} == set(sources.SOURCES[target])


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    wanted = {name for target in sources.SOURCES for name in sources.SOURCES[target]} - {"Dockerfile", ".dockerignore"}
    matched = {name for name in wanted if any(Path(name).match(pattern) for pattern in sent)}
    assert matched == wanted
    assert all(any(Path(name).match(pattern) for name in wanted) for pattern in sent)


def test_every_stage_uses_the_one_base_image() -> None:
    parents = {text.split("\n", 1)[0].removeprefix("FROM ") for text in stages().values()}
    assert parents - set(stages()) == {"${BASE}"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for target in sources.SOURCES:
        for file in sources.files(target):
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return tmp_path


@pytest.mark.parametrize(
    ("edited", "operator_changes", "runner_changes"),
    [
        ("operator/finetune_operator/main.py", True, False),
        ("runner/finetune_runner/main.py", False, True),
        ("crds/finetune_api/stages.py", True, True),
        ("requirements/runner.lock", False, True),
        ("requirements/operator.lock", True, False),
        ("Dockerfile", True, True),
    ],
)
def test_an_edit_changes_the_images_it_is_in(
    checkout: Path, edited: str, *, operator_changes: bool, runner_changes: bool
) -> None:
    before = [sources.key(target, "base", checkout) for target in ("operator", "runner")]
    with (checkout / edited).open("a") as file:
        file.write("\n")
    after = [sources.key(target, "base", checkout) for target in ("operator", "runner")]
    assert [a != b for a, b in zip(after, before, strict=True)] == [operator_changes, runner_changes]


def test_bytecode_changes_no_image_and_another_base_changes_every_image(checkout: Path) -> None:
    before = sources.key("operator", "base", checkout)
    cache = checkout / "operator/finetune_operator/__pycache__"
    cache.mkdir()
    (cache / "main.cpython-311.pyc").write_bytes(b"x")
    assert sources.key("operator", "base", checkout) == before
    assert sources.key("operator", "another", checkout) != before


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """A folder in which every pattern matches something."""
    for pattern in unused.UNUSED:
        path = tmp_path / pattern.replace("**", "part").replace("*", "1")
        path.mkdir(parents=True)
    for kernels in ("cpu", "cuda128", "cuda130", "rocm72"):
        path = tmp_path / "bitsandbytes" / f"libbitsandbytes_{kernels}.so"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_the_kernels_of_torchs_cuda_and_of_the_cpu_stay(site_packages: Path) -> None:
    removed = {path.name for path in unused.unused(site_packages, "13.0") if path.suffix == ".so"}
    assert removed == {"libbitsandbytes_cuda128.so", "libbitsandbytes_rocm72.so"}


def test_a_pattern_that_matches_nothing_stops_the_build(site_packages: Path) -> None:
    shutil.rmtree(site_packages / "torch" / "include")
    with pytest.raises(LookupError, match=r"nothing matches torch/include .* mend UNUSED"):
        unused.unused(site_packages, "13.0")


def test_a_cuda_version_without_kernels_stops_the_build(site_packages: Path) -> None:
    with pytest.raises(LookupError, match=r"no libbitsandbytes_cuda140\.so for torch's CUDA 14\.0"):
        unused.unused(site_packages, "14.0")


def test_the_runner_gets_no_compiler_for_kernels_and_nothing_that_only_benchmarks_need() -> None:
    lock = (ROOT / "requirements" / "runner.lock").read_text()
    assert re.search(r"^torch==", lock, re.MULTILINE)
    assert not re.search(r"^(triton|trl|datasets|pandas)==", lock, re.MULTILINE)


def test_the_workflow_pins_its_actions_and_pushes_only_tags() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/images.yml").read_text())
    steps = workflow["jobs"]["image"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+(\.\d+)*", name)] == []
    pushing = [step for step in steps if step.get("with", {}).get("push")]
    assert [step["if"] for step in pushing] == ["startsWith(github.ref, 'refs/tags/')"]
    assert workflow["jobs"]["image"]["strategy"]["matrix"]["target"] == list(sources.SOURCES)


def test_syft_says_the_version_it_is() -> None:
    module = ROOT / "tests/cluster/binaries/syft"
    version = tomllib.loads((module / "module.toml").read_text())["variables"]["main.version"]
    assert re.search(rf"^\s*github\.com/anchore/syft v{re.escape(version)}\b", (module / "go.mod").read_text(), re.M)
