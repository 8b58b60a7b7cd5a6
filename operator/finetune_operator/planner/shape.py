"""The shape of a decoder: what every memory and time formula needs, and refuses to guess."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from finetune_api.stages import ModelFacts

PARAMETER_TOLERANCE = 0.03
"""How far the weights may be from what the configuration implies: biases and norms of unusual places."""


UNGATED = ("GPT2", "GPTNeo", "GPTJ", "GPTBigCode", "CodeGen", "OPT", "Bloom", "Falcon", "MPT", "PhiFor", "Starcoder2")
"""Architectures whose feed-forward has no gate, by how their names begin (transformers, models/)."""
ENCODERS = (
    "T5",
    "MT5",
    "UMT5",
    "Bart",
    "MBart",
    "Pegasus",
    "Marian",
    "Whisper",
    "Bert",
    "Roberta",
    "Deberta",
    "Electra",
)
"""Architectures with an encoder, which nothing here describes."""


EAGER_ONLY = ("Gemma2", "Gemma-2", "GptOss", "gpt-oss")
"""Beginnings of architectures, and of names in `families.toml`, whose attention has what neither SDPA nor the flash
kernel computes: capped scores, sinks (`_supports_sdpa = False` in transformers). The runner refuses the others."""


def needs_eager(architecture: str) -> bool:
    """Whether only `model.attention: eager` computes this model."""
    return architecture.startswith(EAGER_ONLY)


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder of equal blocks. Widths in elements."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied_embeddings: bool = False
    gated: bool = True
    """Whether the feed-forward has a gate (SwiGLU: three matrices) or not (GPT-2: two)."""

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def key_value_width(self) -> int:
        """Width of all key heads (the value heads have the same)."""
        return self.key_value_heads * self.head_size

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a block, by Llama's names."""
        hidden, feed_forward = self.hidden, self.feed_forward
        found = {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_value_width),
            "v_proj": (hidden, self.key_value_width),
            "o_proj": (self.query_width, hidden),
            "up_proj": (hidden, feed_forward),
            "down_proj": (feed_forward, hidden),
        }
        return found | ({"gate_proj": (hidden, feed_forward)} if self.gated else {})

    @property
    def block_parameters(self) -> int:
        """Parameters of the linear layers of one block."""
        return sum(inside * outside for inside, outside in self.linears.values())

    @property
    def linear_parameters(self) -> int:
        """Parameters that 4-bit quantisation covers: the linear layers of all blocks, not the head."""
        return self.layers * self.block_parameters

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, when it is its own, the head."""
        return self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norms: two per block and one at the end."""
        return (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.embedding_parameters + self.norm_parameters

    @property
    def largest_linear(self) -> int:
        """Parameters of the largest linear layer of a block."""
        return max(inside * outside for inside, outside in self.linears.values())

    def trained(self, target_modules: str, exclude_modules: str | None) -> str:
        """`target_modules` without what is excluded in every block: names of one block's modules do not count."""
        excluded = set((exclude_modules or "").split(","))
        left = [name for name in self.targets(target_modules) if name not in excluded]
        return ",".join(left) if left and excluded & set(self.linears) else target_modules

    def targets(self, target_modules: str) -> tuple[str, ...]:
        """Names of `linears` that get an adapter. Names this shape does not know count as all: an upper bound."""
        if target_modules == "all-linear":
            return tuple(self.linears)
        asked = tuple(name.rsplit(".", 1)[-1] for name in target_modules.split(","))
        return asked if set(asked) <= set(self.linears) else tuple(self.linears)


class UnknownShapeError(ValueError):
    """The facts do not describe a dense decoder of equal blocks; the message says why."""


def shape_of(facts: ModelFacts) -> ModelShape:
    """The shape that the facts describe.

    Whether the feed-forward is gated is read off the number of parameters, which also shows everything that is not a
    plain decoder (mixtures of experts, vision towers, cross-layer sharing); without it, off the architecture's name.

    Raises:
        UnknownShapeError: a fact is missing, or the parameters do not follow from the configuration.
    """
    needed = {
        "hidden size": facts.hidden_size,
        "layers": facts.layers,
        "vocabulary": facts.vocabulary,
        "feed-forward size": facts.feed_forward_size,
        "attention heads": facts.attention_heads,
        "key and value heads": facts.key_value_heads,
        "head size": facts.head_size,
    }
    missing = [name for name, value in needed.items() if value <= 0]
    if missing:
        raise UnknownShapeError(f"the model's configuration does not say: {', '.join(missing)}")
    if facts.architecture.startswith(ENCODERS):
        raise UnknownShapeError(f"{facts.architecture} is not a decoder")
    if facts.experts > 1:
        raise UnknownShapeError(f"{facts.architecture} is a mixture of {facts.experts} experts")
    shapes = [
        ModelShape(
            layers=facts.layers,
            hidden=facts.hidden_size,
            feed_forward=facts.feed_forward_size,
            heads=facts.attention_heads,
            key_value_heads=facts.key_value_heads,
            head_size=facts.head_size,
            vocabulary=facts.vocabulary,
            tied_embeddings=facts.tied_embeddings,
            gated=gated,
        )
        for gated in (True, False)
    ]
    if facts.parameters <= 0:
        return shapes[1] if facts.architecture.startswith(UNGATED) else shapes[0]
    nearest = min(shapes, key=lambda shape: abs(shape.parameters - facts.parameters))
    if abs(nearest.parameters / facts.parameters - 1) > PARAMETER_TOLERANCE:
        raise UnknownShapeError(
            f"{facts.architecture} has {facts.parameters / 1e9:.2f} billion parameters, its configuration implies "
            f"{nearest.parameters / 1e9:.2f}: not a plain dense decoder"
        )
    return nearest
