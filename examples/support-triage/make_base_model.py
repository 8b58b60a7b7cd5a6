"""Make the example's small base model by real pre-training: about a minute on one CPU core, no download.

    python make_base_model.py --output DIR

A Llama of about half a million parameters learns the general chats of ``general_corpus.py`` from scratch. It is saved
in Hugging Face format (safetensors, tokenizer, chat template), so whatever loads a model from a folder loads this one.
With the same seed on the same machine and library versions the files are byte-identical. If ``--output`` already holds
a model of the same recipe nothing is done.
"""

import argparse
import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch: two threads on a shared core are slower than one.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # Saving a model imports deepspeed, which warns about a missing GPU.

import torch
from general_corpus import Document, documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).resolve().parent
RECIPE_FILE = "recipe.json"
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
# {% generation %} marks what the assistant wrote: trainers compute the loss there and nowhere else.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Shape and optimisation of the model; sizes in tokens, steps and units, rates per step."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    feed_forward: int = 384
    vocabulary: int = 1200
    context: int = 1024
    init_std: float = 0.02
    steps: int = 1200
    batch: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    shop_share: float = 0.5


RECIPE = Recipe()


def recipe_digest(seed: int) -> str:
    """Digest of everything that decides the result: recipe, seed, the two source files, library versions."""
    facts = {
        "recipe": asdict(RECIPE),
        "seed": seed,
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "sources": [(HERE / name).read_text(encoding="utf-8") for name in ("make_base_model.py", "general_corpus.py")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def render(document: Document) -> str:
    """The text of a chat, as ``CHAT_TEMPLATE`` renders it."""
    parts = [f"<|{m['role']}|>{m['content']}{END if m['role'] == 'assistant' else ''}" for m in document]
    return BEGIN + "".join(parts)


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned on ``texts``: any input can be written, pad differs from end of sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=ROLES,
        chat_template=CHAT_TEMPLATE,
        model_max_length=RECIPE.context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_batches(token_ids: list[list[int]], batch: int, rng: random.Random) -> list[list[list[int]]]:
    """Batches of documents of similar length, in random order; a document never shares its context with another."""
    shuffled = token_ids[:]
    rng.shuffle(shuffled)
    batches = []
    for start in range(0, len(shuffled), batch * 50):  # Sorted within a window: little padding, still mixed.
        window = sorted(shuffled[start : start + batch * 50], key=len)
        batches += [window[i : i + batch] for i in range(0, len(window), batch)]
    rng.shuffle(batches)
    return batches


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain(model: LlamaForCausalLM, batches: list[list[list[int]]], pad: int) -> float:
    """Train on every batch once; prints progress; returns the mean loss of the last 50 steps (nats per token)."""
    steps = len(batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RECIPE.learning_rate, betas=(0.9, 0.95), weight_decay=RECIPE.weight_decay
    )
    warmup = round(steps * RECIPE.warmup_fraction)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup))
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step, batch in enumerate(batches, start=1):
        width = max(map(len, batch))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
        # Padding stands on the right, behind everything that counts: with causal attention no mask is needed.
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == pad, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            seconds = time.monotonic() - began
            print(f"  step {step:4d}/{steps}  loss {recent:.3f}  {seconds:3.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for whoever else makes a model in this folder: then there is one, and nothing more to do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make(output: Path, seed: int) -> None:
    """Pre-train and save; the folder appears complete or not at all."""
    digest = recipe_digest(seed)
    if (output / RECIPE_FILE).is_file():
        if json.loads((output / RECIPE_FILE).read_text(encoding="utf-8")).get("digest") == digest:
            print(f"{output} already holds this base model")
            return
    elif output.exists() and any(output.iterdir()):
        sys.exit(f"{output} is not empty and holds no base model of this script: name another --output")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    count = RECIPE.steps * RECIPE.batch
    corpus = list(itertools.islice(documents(seed, shop_share=RECIPE.shop_share), count))
    texts = [render(document) for document in corpus]
    tokenizer = make_tokenizer(texts[:8000], RECIPE.vocabulary)
    token_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=RECIPE.hidden,
        intermediate_size=RECIPE.feed_forward,
        num_hidden_layers=RECIPE.layers,
        num_attention_heads=RECIPE.heads,
        num_key_value_heads=RECIPE.heads,
        max_position_embeddings=RECIPE.context,
        initializer_range=RECIPE.init_std,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    tokens = sum(map(len, token_ids))
    print(f"pre-training {model.num_parameters():,} parameters on {count:,} documents, {tokens:,} tokens", flush=True)
    batches = make_batches(token_ids, RECIPE.batch, random.Random(seed))
    loss = pretrain(model, batches, tokenizer.pad_token_id)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    recipe = {"digest": digest, "seed": seed, **asdict(RECIPE), "finalLoss": round(loss, 4)}
    (partial / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(f"saved to {output}")


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make the example's base model by pre-training it.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, made if missing")
    parser.add_argument("--seed", type=int, default=7, help="seed of corpus, initialisation and order (default 7)")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(arguments.output.parent):
        make(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
