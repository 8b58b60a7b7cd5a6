"""Facts about the base model: its config.json, the hub's cache, or a known shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.model_config import facts_of_config, mixture_parameters
from finetune_api.stages import ModelFacts
from finetune_cli.errors import CliError
from finetune_cli.jobfile import FILE_SCHEME
from finetune_operator.planner.families import facts_of_shape, nearest_shape, shape_of_name
from finetune_operator.planner.shape import UnknownShapeError, shape_of

HUB_SCHEME = "hf://"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([MmBb])")
_UNITS = {"m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class KnownModel:
    """Facts and where they come from, in words."""

    facts: ModelFacts
    origin: str


def find_model(
    source: str, config: Path | None, parameters: str | None, environment: Mapping[str, str], caches: list[Path]
) -> KnownModel:
    """The facts: `--model-config`, `--parameters`, the model's folder, the hub's cache, the name.

    Raises CliError when nothing is known, or a file is damaged.
    """
    if config is not None:
        return KnownModel(_read(config), f"from {config}")
    if parameters is not None:
        return _by_size(parameters)
    if source.startswith(FILE_SCHEME):
        path = Path(source.removeprefix(FILE_SCHEME)) / "config.json"
        if not path.is_file():
            raise CliError(f"model.source: there is no {path}", "Correct the path, or name one with --model-config.")
        return KnownModel(_read(path), f"from {path}")
    if source.startswith(HUB_SCHEME):
        for path in _cached(source.removeprefix(HUB_SCHEME), environment, caches):
            return KnownModel(_read(path), f"from {path}")
    name = shape_of_name(source)
    if name is not None:
        return KnownModel(facts_of_shape(name), f"known shape of {source.rsplit('/', 1)[-1]}")
    raise CliError(
        f"model.source {source}: its configuration is not on this machine and its name is not a known one",
        "Name its config.json with --model-config FILE, or its size with --parameters 8B.",
    )


def _by_size(text: str) -> KnownModel:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise CliError(f"--parameters: {text!r} is not a size", "Write for example 8B, 0.5B or 350M.")
    count = float(match[1]) * _UNITS[match[2].lower()]
    name = nearest_shape(count) if count > 0 else None
    if name is None:
        raise CliError(f"--parameters: no known model is near {text}", "Name a config.json with --model-config FILE.")
    return KnownModel(facts_of_shape(name), f"shape of {name}, the nearest to {text}")


def _read(path: Path) -> ModelFacts:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not an object")
        files = sorted(path.parent.glob("*.safetensors"))
        facts = facts_of_config(config, parameters=0, file_bytes=sum(item.stat().st_size for item in files))
        mixture = mixture_parameters(config) if facts.experts > 1 else 0
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}", "Name a model's config.json.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CliError(f"{path} is not a model's config.json: {error}", "Name a model's config.json.") from error
    try:
        return facts.model_copy(update={"parameters": shape_of(facts).parameters})
    except UnknownShapeError:
        # Told by the forecast itself, which then leaves memory and time out.
        return facts.model_copy(update={"parameters": mixture})


def _cached(repository: str, environment: Mapping[str, str], caches: list[Path]) -> Iterator[Path]:
    """config.json of the newest snapshots in the hub client's cache (its layout: models--OWNER--NAME/snapshots/)."""
    home = Path(environment.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    folders = [*caches, Path(environment.get("HF_HUB_CACHE", home / "hub"))]
    name = f"models--{repository.strip('/').replace('/', '--')}"
    for folder in folders:
        found = list((folder / name / "snapshots").glob("*/config.json"))
        yield from sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
