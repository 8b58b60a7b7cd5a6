"""Which files of a source a job reads: its subset and its split. Pure: names in, names out.

The rules are those of the hub and of the `datasets` library (docs: "Structure your repository", "Manual configuration";
source: datasets/data_files.py), for every scheme alike: what a data set's card says under `configs:`, else folders and
the names of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.utils import glob_translate
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_api.exit_codes import ExitCode
from finetune_api.wording import counted
from finetune_runner.errors import StageError

CARD = "README.md"
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-[0-9]{5}-of-[0-9]{5}(\.[a-z.]+)$")
_WORD = re.compile(r"[-._ 0-9/]+")
_DATA_FOLDER = "data"
_CARD_HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_SHOWN = 12


@dataclass(frozen=True)
class Choice:
    """What of a source a job reads."""

    subset: str | None = None
    split: str | None = None
    usual_split: str = "train"
    """Taken without a word where no split is asked for and the source has one of this name."""


@dataclass(frozen=True)
class Chosen:
    """The files to read."""

    names: list[str]
    """Paths below the source, sorted."""
    said: str = ""
    """What was left out and why; empty when nothing was."""


def choose_files(where: str, names: Iterable[str], choice: Choice, card: str = "") -> Chosen:
    """The files of a folder that are the subset and split of a choice.

    Args:
        where: field and source, for messages.
        names: paths of the readable data files below the folder, with `/`.
        choice: what is asked for.
        card: text of the data set's card, where the folder is a data set of the hub.

    Raises:
        StageError: INVALID_SPEC naming what there is, when the subset or split is not there or one has to be named;
            INVALID_DATA when the card's configuration cannot be read.
    """
    every = sorted(names)
    configs = _configs(where, card)
    if configs:
        return _by_card(where, every, choice, configs)
    below = _subset_folder(where, every, choice.subset)
    return _by_split(where, below, choice)


def split_of(name: str) -> str | None:
    """The split that a file's path names: `test` of `data/test-00000-of-00002.parquet`, `validation` of `dev/a.csv`."""
    shard = _SHARD.match(name.rpartition("/")[2].removesuffix(".gz"))
    if shard and not any(shard["split"].lower() in keywords for keywords in _KEYWORDS.values()):
        return shard["split"]
    words = [word.lower() for word in _WORD.split(name.rpartition("/")[2].rpartition(".")[0])]
    folders = [word.lower() for word in _WORD.split(name.rpartition("/")[0])]
    for found in (words, folders):
        for split, keywords in _KEYWORDS.items():
            if any(word in keywords for word in found):
                return split
    return None


def _subset_folder(where: str, names: Sequence[str], subset: str | None) -> list[str]:
    folders = sorted({name.rpartition("/")[0] for name in names if "/" in name})
    if subset is not None:
        below = [name for name in names if name.startswith(f"{subset.strip('/')}/")]
        if not below:
            raise _missing(where, "subset", subset, "folder", folders)
        return below
    for folder in ("", f"{_DATA_FOLDER}/"):
        here = [name for name in names if name.startswith(folder) and "/" not in name.removeprefix(folder)]
        if here:
            return here
    if names and all(split_of(f"{folder}/x") for folder in folders):
        return list(names)  # one folder per split
    if folders:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{where} has its data files in folders: {_some(folders)}",
            f"name one with subset, for example subset: {folders[0]}",
        )
    return list(names)


def _by_split(where: str, names: list[str], choice: Choice) -> Chosen:
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(split_of(name) or "", []).append(name)
    named = sorted(split for split in splits if split)
    if choice.split is not None:
        found = splits.get(choice.split)
        if not found:
            raise _missing(where, "split", choice.split, "file of the split", named)
        return Chosen(found)
    if choice.usual_split in splits and len(splits) > 1:
        taken = splits[choice.usual_split]
        return Chosen(taken, _left_out(choice.usual_split, taken, names, named))
    if len(splits) > 1:
        together = ", ".join(named) + (" and no split" if "" in splits else "")
        return Chosen(
            names, f"read together: files named like {together}; name a split, or the files, to keep them apart"
        )
    return Chosen(names)


def _left_out(split: str, taken: Sequence[str], names: Sequence[str], splits: Sequence[str]) -> str:
    others = [other for other in splits if other != split]
    also = f" (splits {', '.join(others)})" if others else ""
    return f"split {split}: {len(taken)} of {counted(len(names), 'file')}; not read: {len(names) - len(taken)}{also}"


def _by_card(where: str, names: list[str], choice: Choice, configs: Mapping[str, Mapping[str, Any]]) -> Chosen:
    if choice.subset is not None and choice.subset not in configs:
        raise _missing(where, "subset", choice.subset, "configuration of the data set's card", list(configs))
    subset = choice.subset or _default_config(configs)
    if subset is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{where} has several configurations and no default: {_some(list(configs))}",
            f"name one with subset, for example subset: {next(iter(configs))}",
        )
    config = configs[subset]
    folder = str(config.get("data_dir") or "").strip("./")
    below = {name.removeprefix(f"{folder}/"): name for name in names if not folder or name.startswith(f"{folder}/")}
    patterns = _patterns(config.get("data_files"))
    if not patterns:
        chosen = _by_split(where, sorted(below), choice)
        return Chosen([below[name] for name in chosen.names], chosen.said)
    splits = {split: _matching(globs, below) for split, globs in patterns.items()}
    split = choice.split or (choice.usual_split if choice.usual_split in splits else None)
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split is None or split not in splits:
        raise _missing(where, "split", choice.split or choice.usual_split, f"split of subset {subset}", list(splits))
    if not splits[split]:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{where}: no data file matches {_some(patterns[split])}, which its card names for split {split} of "
            f"subset {subset}",
            "name the files themselves in source, or tell the data set's owner",
        )
    read = splits[split]
    every = sorted({name for found in splits.values() for name in found})
    said = "" if choice.split or len(read) == len(every) else _left_out(split, read, every, sorted(splits))
    return Chosen(read, said)


def _configs(where: str, card: str) -> dict[str, Mapping[str, Any]]:
    """Configurations of a card by name: the list `configs:` of the YAML at its head."""
    head = _CARD_HEAD.match(card)
    if head is None:
        return {}
    try:
        read = YAML(typ="safe", pure=True).load(head[1])
        configs = (read or {}).get("configs") or []
        return {str(config["config_name"]): config for config in configs}
    except (YAMLError, AttributeError, TypeError, KeyError) as error:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{where}: the YAML at the head of the data set's card {CARD} cannot be read",
            "name the files themselves in source, or tell the data set's owner",
            f"{type(error).__name__}: {error}"[:500],
        ) from error


def _default_config(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    marked = [name for name, config in configs.items() if config.get("default")]
    if marked:
        return marked[0]
    if "default" in configs:
        return "default"
    return next(iter(configs)) if len(configs) == 1 else None


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Globs by split, from the three ways a card may write them: a glob, a list of globs, a list of split and path."""
    if not data_files:
        return {}
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, Mapping):
        return {str(split): _globs(path) for split, path in data_files.items()}
    if all(isinstance(entry, str) for entry in data_files):
        return {"train": list(data_files)}
    found: dict[str, list[str]] = {}
    for entry in data_files:
        if isinstance(entry, Mapping) and "path" in entry:
            found.setdefault(str(entry.get("split", "train")), []).extend(_globs(entry["path"]))
    return found


def _globs(path: Any) -> list[str]:
    return [path] if isinstance(path, str) else [str(each) for each in path]


def _matching(globs: Sequence[str], below: Mapping[str, str]) -> list[str]:
    patterns = [re.compile(glob_translate(glob.removeprefix("./"))) for glob in globs]
    return sorted(full for name, full in below.items() if any(pattern.match(name) for pattern in patterns))


def _missing(where: str, field: str, asked: str, what: str, there: Sequence[str]) -> StageError:
    return StageError(
        ExitCode.INVALID_SPEC,
        f"{where} has no {field} {asked}; there {'is' if len(there) == 1 else 'are'}: {_some(there)}",
        f"set {field} to a {what} that is there, or leave it out" if there else f"leave {field} out",
    )


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
