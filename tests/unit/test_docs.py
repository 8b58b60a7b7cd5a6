"""What README and docs show is valid: YAMLs by our own validation, links by existing, make targets by the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_api.validation import validate_document

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"),
        *(ROOT / "docs").glob("**/*.md"),
        *(ROOT / "examples").glob("*/README.md"),
    ]
)
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").glob("**/*.yaml")
    if re.search(r"^apiVersion: finetune\.dev/", path.read_text(), re.MULTILINE)
)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page.name, match[1])
        for page in PAGES
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "text"), [b for b in blocks("yaml") if "finetune.dev/v1alpha1" in b[1]])
def test_every_yaml_in_the_docs_is_valid(page: str, text: str) -> None:
    assert [problem.message for problem in validate_document(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:`|^\$ )make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_of_ours_is_valid(path: Path) -> None:
    documents = yaml.safe_load_all(path.read_text())
    ours = [document for document in documents if document["apiVersion"] == "finetune.dev/v1alpha1"]
    assert [problem.message for document in ours for problem in validate_document(yaml.safe_dump(document))] == []


def test_the_preference_pairs_are_what_their_script_makes() -> None:
    folder = ROOT / "examples" / "preferences"
    made = subprocess.run([sys.executable, folder / "make_data.py"], capture_output=True, check=True)
    assert made.stdout == (folder / "preferences.jsonl").read_bytes()
