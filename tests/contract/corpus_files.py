"""One corpus of YAMLs on which the API server and our own validation must agree."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
GOOD = sorted((FOLDER / "good").glob("*.yaml"))
BAD = sorted((FOLDER / "bad").glob("*.yaml"))


def text_of(file: Path) -> str:
    """The text byte for byte: line ends and a byte order mark are a part of some cases."""
    return file.read_bytes().decode("utf-8")


def expected_words(file: Path) -> str:
    """What a bad file's problem must say: its first line is `# expect: WORDS`."""
    first = text_of(file).splitlines()[0]
    if not first.startswith("# expect: "):
        raise ValueError(f"{file.name} must start with '# expect: WORDS OF THE MESSAGE'")
    return first.removeprefix("# expect: ")
