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


HYBRIDS = ("Qwen3Next", "Qwen3_5Moe", "Jamba", "GraniteMoeHybrid", "NemotronH", "Lfm2Moe", "KimiLinear")
"""Beginnings of architectures of mixtures, some of whose blocks have no attention but a state."""


@dataclass(frozen=True)
class Mixture:
    """Experts in place of the feed-forward layer of most blocks. Widths in elements."""

    experts: int
    active: int
    """Experts that each token passes."""
    width: int
    """Of one expert."""
    shared: int = 0
    """Width of what every token passes beside them."""
    dense_blocks: int = 0
    """Blocks with a feed-forward layer of the common width instead."""


LATENT = ("DeepseekV2For", "DeepseekV3For")
"""Beginnings of architectures whose latent attention is described here; Kimi-K2 is one of the second kind."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values from a narrow vector that is cached instead. Widths in elements."""

    query: int
    """Of the vector that queries come from; 0: straight from the residual stream."""
    key_value: int
    position: int
    """Of the part of a head that knows the position: its key is one for all heads."""
    value: int
    """Of a value head; `head_size` is that of queries and keys."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder of equal blocks, or of a mixture's two kinds of blocks. Widths in elements."""

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
    mixture: Mixture | None = None
    latent: Latent | None = None

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def key_value_width(self) -> int:
        """Width of all key heads (the value heads have the same)."""
        return self.key_value_heads * self.head_size

    @property
    def output_width(self) -> int:
        """Width of what attention gives, all heads together."""
        return self.heads * (self.latent.value if self.latent else self.head_size)

    @property
    def expanded_width(self) -> int:
        """Width of what the keys and values of one block are made of at its turn: 0 where they are kept as they are.

        Of all heads: keys without position and values as they come out, and the keys put together.
        """
        if self.latent is None:
            return 0
        return self.heads * (2 * self.head_size - self.latent.position + self.latent.value)

    @property
    def cached_width(self) -> int:
        """Width of what transformers caches per token and block: keys and values, or what they are made of."""
        if self.latent is None:
            return 2 * self.key_value_width
        return self.latent.key_value + self.latent.position

    @cached_property
    def _attention(self) -> dict[str, tuple[int, int]]:
        hidden, latent = self.hidden, self.latent
        if latent is None:
            return {
                "q_proj": (hidden, self.query_width),
                "k_proj": (hidden, self.key_value_width),
                "v_proj": (hidden, self.key_value_width),
                "o_proj": (self.query_width, hidden),
            }
        queries = (
            {"q_a_proj": (hidden, latent.query), "q_b_proj": (latent.query, self.query_width)}
            if latent.query
            else {"q_proj": (hidden, self.query_width)}
        )
        return queries | {
            "kv_a_proj_with_mqa": (hidden, latent.key_value + latent.position),
            "kv_b_proj": (latent.key_value, self.expanded_width - self.query_width),
            "o_proj": (self.output_width, hidden),
        }

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a block that can have an adapter, by Llama's or DeepSeek's names.

        Of a mixture those of its attention (runner, training/targets.py).
        """
        hidden, feed_forward = self.hidden, self.feed_forward
        found = dict(self._attention)
        if self.mixture is not None:
            return found
        found |= {"up_proj": (hidden, feed_forward), "down_proj": (feed_forward, hidden)}
        return found | ({"gate_proj": (hidden, feed_forward)} if self.gated else {})

    @cached_property
    def matrices(self) -> tuple[int, ...]:
        """Parameters of each tensor of a block, of the larger kind where there are two.

        Experts are one tensor for gate and up, and one for down.
        """
        found = tuple(inside * outside for inside, outside in self.linears.values())
        if self.mixture is None:
            return found
        hidden, mixture = self.hidden, self.mixture
        experts = mixture.experts * hidden * mixture.width
        shared = (hidden * mixture.shared,) * 3 if mixture.shared else ()
        return (*found, 2 * experts, experts, mixture.experts * hidden, *shared)

    @property
    def block_parameters(self) -> int:
        """Parameters of the matrices of one block."""
        return sum(self.matrices)

    @property
    def block_expert_parameters(self) -> int:
        """Parameters of all experts of one block."""
        return 3 * self.mixture.experts * self.hidden * self.mixture.width if self.mixture else 0

    @property
    def expert_parameters(self) -> int:
        """Parameters of all experts of a mixture but the shared ones."""
        return (self.layers - self.mixture.dense_blocks) * self.block_expert_parameters if self.mixture else 0

    @property
    def router_parameters(self) -> int:
        """Parameters of a mixture's routers, which stay in 16 bit."""
        return (self.layers - self.mixture.dense_blocks) * self.mixture.experts * self.hidden if self.mixture else 0

    @property
    def linear_parameters(self) -> int:
        """Parameters that 4-bit quantisation covers: linear layers and experts of all blocks, not the head."""
        if self.mixture is None:
            return self.layers * self.block_parameters
        attention = self.layers * sum(inside * outside for inside, outside in self.linears.values())
        dense = self.mixture.dense_blocks
        wide = 3 * self.hidden * (dense * self.feed_forward + (self.layers - dense) * self.mixture.shared)
        return attention + wide + self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters of the blocks that take part in a token's products: of a mixture the experts that it passes."""
        if self.mixture is None:
            return self.linear_parameters
        idle = 1 - self.mixture.active / self.mixture.experts
        return self.linear_parameters + self.router_parameters - round(idle * self.expert_parameters)

    @property
    def widest_moment(self) -> int:
        """Elements per token at the widest moment of a block's forward pass, beside the residual stream.

        Gate, up and their product; of each expert that a token passes these and the two halves of its gate, or what
        comes out of it, weighted and put in order (runner, training/experts.py).
        """
        wide = 3 * self.feed_forward
        if self.mixture is not None:
            mixture = self.mixture
            passed = mixture.active * max(4 * mixture.width, 3 * self.hidden + mixture.width) + 3 * mixture.shared
            wide = max(passed, wide if mixture.dense_blocks else 0)
        # Queries as they come out and with their position, keys and values, and what attention gives.
        attention = 2 * self.query_width + self.expanded_width + self.output_width if self.latent else 0
        return 4 * self.hidden + max(wide, attention)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, when it is its own, the head."""
        return self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norms: two per block, those of what keys and queries are made of, and one at the end."""
        inner = self.latent.query + self.latent.key_value if self.latent else 0
        return (2 * self.layers + 1) * self.hidden + self.layers * inner

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.router_parameters + self.embedding_parameters + self.norm_parameters

    @property
    def largest_linear(self) -> int:
        """Parameters of the largest linear layer that can have an adapter."""
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
    """The facts do not describe a decoder of equal blocks, dense or of experts; the message says why."""


def shape_of(facts: ModelFacts) -> ModelShape:
    """The shape that the facts describe.

    Whether the feed-forward is gated is read off the number of parameters, which also shows everything that is not a
    plain decoder (vision towers, cross-layer sharing); without it, off the architecture's name.

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
    mixture, latent = _mixture(facts), _latent(facts)
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
            mixture=mixture,
            latent=latent,
        )
        for gated in ((True, False) if mixture is None else (True,))
    ]
    if facts.parameters <= 0:
        return shapes[-1] if facts.architecture.startswith(UNGATED) else shapes[0]
    kind = "dense decoder" if mixture is None else "mixture of experts"
    nearest = min(shapes, key=lambda shape: abs(shape.parameters - facts.parameters))
    if abs(nearest.parameters / facts.parameters - 1) > PARAMETER_TOLERANCE:
        raise UnknownShapeError(
            f"{facts.architecture} has {facts.parameters / 1e9:.2f} billion parameters, its configuration implies "
            f"{nearest.parameters / 1e9:.2f}: not a plain {kind}"
        )
    return nearest


def _latent(facts: ModelFacts) -> Latent | None:
    """The latent attention that the facts describe; None of one that keeps its keys. Raises UnknownShapeError."""
    if not facts.latent_attention:
        return None
    widths = facts.key_value_latent_size, facts.position_size, facts.value_head_size
    if not facts.architecture.startswith(LATENT) or not all(widths):
        raise UnknownShapeError(f"{facts.architecture} has multi-head latent attention as no model that is known")
    return Latent(facts.query_latent_size, *widths)


def _mixture(facts: ModelFacts) -> Mixture | None:
    """The experts that the facts describe; None of a dense model. Raises UnknownShapeError."""
    if facts.experts <= 1:
        return None
    what = f"{facts.architecture} is a mixture of {facts.experts} experts"
    if facts.architecture.startswith(HYBRIDS):
        raise UnknownShapeError(f"{what} whose blocks are not all attention")
    if facts.active_experts <= 0 or facts.expert_size <= 0:
        missing = "how many each token passes" if facts.active_experts <= 0 else "how wide they are"
        raise UnknownShapeError(f"{what}, and its configuration does not say {missing}")
    return Mixture(
        experts=facts.experts,
        active=min(facts.active_experts, facts.experts),
        width=facts.expert_size,
        shared=facts.shared_expert_size,
        dense_blocks=min(facts.dense_layers, facts.layers),
    )
