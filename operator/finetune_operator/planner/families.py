"""Known shapes of common models (data/families.toml)."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from finetune_api.stages import ModelFacts
from finetune_operator.planner.shape import Mixture, ModelShape

NEAREST_TOLERANCE = 0.25
"""How far `--parameters` may be from the nearest known shape."""


@cache
def _data() -> dict[str, dict[str, list[int]]]:
    text = files("finetune_operator.planner").joinpath("data/families.toml").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[int]]] = tomllib.loads(text)
    return found


@cache
def known_shapes() -> dict[str, ModelShape]:
    """Shapes by name."""
    return {
        name: ModelShape(
            layers=layers,
            hidden=hidden,
            feed_forward=feed_forward,
            heads=heads,
            key_value_heads=key_value_heads,
            head_size=head_size,
            vocabulary=vocabulary,
            tied_embeddings=bool(tied),
            mixture=Mixture(*experts) if experts else None,
        )
        for name, (
            layers,
            hidden,
            feed_forward,
            heads,
            key_value_heads,
            head_size,
            vocabulary,
            tied,
            *experts,
        ) in _data()["shapes"].items()
    }


def shape_of_name(source: str) -> str | None:
    """Name of the shape of a hub repository or folder, by the part after the last slash; None when unknown."""
    name = source.rstrip("/").rsplit("/", 1)[-1].lower()
    matches = [
        (len(prefix), shape)
        for shape, prefixes in _data()["names"].items()
        for prefix in map(str, prefixes)
        if name.startswith(prefix)
    ]
    return max(matches)[1] if matches else None


def nearest_shape(parameters: float) -> str | None:
    """Name of the known shape with the nearest number of parameters; None when none is near."""

    def distance(name: str) -> float:
        return abs(known_shapes()[name].parameters / parameters - 1)

    # A mixture is asked for by its name: its size says little of what it needs.
    name = min((name for name, shape in known_shapes().items() if shape.mixture is None), key=distance)
    return name if distance(name) <= NEAREST_TOLERANCE else None


def facts_of_shape(name: str) -> ModelFacts:
    """Facts of a known shape. Raises KeyError for an unknown name."""
    shape = known_shapes()[name]
    mixture = shape.mixture
    return ModelFacts(
        architecture=name,
        parameters=shape.parameters,
        hidden_size=shape.hidden,
        layers=shape.layers,
        vocabulary=shape.vocabulary,
        feed_forward_size=shape.feed_forward,
        attention_heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_size=shape.head_size,
        tied_embeddings=shape.tied_embeddings,
        file_bytes=2 * shape.parameters,
        experts=mixture.experts if mixture else 0,
        active_experts=mixture.active if mixture else 0,
        expert_size=mixture.width if mixture else 0,
        shared_expert_size=mixture.shared if mixture else 0,
        dense_layers=mixture.dense_blocks if mixture else 0,
    )
