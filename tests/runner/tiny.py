"""A tiny Llama with a BPE tokenizer, and tickets whose category one word decides: enough to learn in tens of steps."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.stages import (
    JobIdentity,
    ModelFacts,
    PrepareResult,
    Progress,
    RowCounts,
    StageResults,
    StageTask,
    TokenLengths,
    TrainPlan,
)
from finetune_runner.context import Environment, StageContext, open_context
from finetune_runner.data.prepared import ROW_HASHES_PATH, split_path
from finetune_runner.data.rows import Row, make_row, write_rows
from finetune_runner.model_source import model_digest

WORDS = {
    "invoice": "billing",
    "refund": "billing",
    "crash": "defect",
    "error": "defect",
    "login": "access",
    "password": "access",
}
OPENINGS = ("please look at my", "there is a", "again the", "we have one more", "urgent", "hello, our")
ENDINGS = ("since monday", "thank you", "in the app", "on two machines", "it is late", "for all of us")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def tickets(count: int, seed: int) -> list[Row]:
    """Different tickets with their category as JSON."""
    chance = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        word = chance.choice(sorted(WORDS))
        text = f"{chance.choice(OPENINGS)} {word} number {chance.randrange(1000)} {chance.choice(ENDINGS)}"
        row = make_row(
            [
                {"role": "user", "content": text},
                {"role": "assistant", "content": json.dumps({"category": WORDS[word]})},
            ]
        )
        rows[row.id] = row
    return list(rows.values())


def make_tiny_model(folder: Path, *, heads: int = 4, kv_heads: int = 2) -> Path:
    """Write a random Llama (hidden 64, 2 layers) and its tokenizer; the same bytes every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        [m["content"] for row in tickets(400, 0) for m in row.messages],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class World:
    """A storage folder with prepared splits, and the tasks of one run on it."""

    folder: Path
    model: Path
    spec: dict[str, Any]
    plan: TrainPlan
    prepare: PrepareResult
    adapter: str = "triage"
    uid: str = "uid-1"
    run: int = 1

    def task(self, stage: str, **changes: Any) -> StageTask:
        """The task of a stage."""
        wire: dict[str, Any] = {
            "stage": stage,
            "job": JobIdentity(namespace="team", name="job", uid=self.uid, run=self.run).to_wire(),
            "adapter": self.adapter,
            "attempt": 1,
            "storage": {"uri": f"file://{self.folder}/store"},
            "spec": self.spec,
            "gates": self.spec.get("evaluation", {}).get("gates", []),
            "plan": self.plan.to_wire(),
            "results": StageResults(prepare=self.prepare).to_wire(),
            "createdAt": "2026-03-01T12:00:00Z",
        }
        return StageTask.from_wire(wire).model_copy(update=changes)

    def context(self, stage: str, **changes: Any) -> StageContext:
        """The context of a stage, with a scratch folder of its own."""
        return self.open(self.task(stage, **changes))

    def open(self, task: StageTask, said: list[Progress] | None = None) -> StageContext:
        """The context of a task; progress goes into `said`."""
        scratch = self.folder / "scratch"
        environ = {"FINETUNE_SCRATCH": str(scratch), "FINETUNE_SECRETS": str(self.folder / "secrets")}
        context = open_context(
            task,
            Environment.of(environ, str(scratch)),
            clock=lambda: NOW,
            progress=(said if said is not None else []).append,
            stop=threading.Event(),
        )
        context.fence.claim()
        return context

    def with_plan(self, **changes: Any) -> World:
        """The same world with another plan."""
        return replace(self, plan=self.plan.model_copy(update=changes))


def make_world(
    folder: Path,
    model: Path,
    *,
    train: int = 96,
    validation: int = 16,
    test: int = 24,
    out_of_domain: int = 8,
    spec: dict[str, Any] | None = None,
    **plan: Any,
) -> World:
    """A run whose stage prepare is done."""
    rows = tickets(train + validation + test, 1)
    splits = {
        "train": rows[:train],
        "validation": rows[train : train + validation],
        "test": rows[train + validation :],
        "out_of_domain": tickets(out_of_domain, 2),
    }
    full_spec: dict[str, Any] = {
        "model": {"source": f"file://{model}"},
        "data": {"train": [{"source": f"file://{folder}/train.jsonl"}]},
        "method": {"type": "lora", "rank": 8, "alpha": 16},
        "training": {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "earlyStopping": {"patience": 0}},
        "evaluation": {
            "task": {
                "type": "classification",
                "labelPath": "$.category",
                "schema": {"type": "object", "required": ["category"]},
            },
            "baselinePrompt": "Answer with the category.",
            "fewShot": 2,
            "maxNewTokens": 16,
            "metrics": [{"name": "f1"}, {"name": "exactMatch"}, {"name": "schemaValid"}, {"name": "rougeL"}],
            "outOfDomain": {"source": f"file://{folder}/ood.jsonl"},
            "gates": [
                {"metric": "f1", "minimum": 0.5},
                {"metric": "f1", "over": "baseline", "minimumGain": 0.05},
                {"metric": "f1", "over": "incumbent", "maximumRegression": "5%"},
                {"metric": "outOfDomainLoss", "over": "base", "maximumRegression": "10%"},
            ],
        },
        "output": {"adapterRef": {"name": "triage"}},
        **(spec or {}),
    }
    defaults: dict[str, Any] = {
        "method": "lora",
        "strategy": "single",
        "nodes": 1,
        "gpus_per_node": 0,
        "total_steps": 12,
        "micro_batch_size": 4,
        "gradient_accumulation": 2,
        "eval_steps": 4,
    }
    prepare = PrepareResult(
        revision=model_digest(model),
        model_digest=model_digest(model),
        model=ModelFacts(architecture="LlamaForCausalLM", parameters=1),
        rows=RowCounts(train=train, validation=validation, test=test, out_of_domain=out_of_domain),
        train_tokens=1,
        lengths=TokenLengths(),
        data_digest="d" * 64,
        test_digest="e" * 64,
    )
    world = World(folder, model, full_spec, TrainPlan(**{**defaults, **plan}), prepare)
    root = folder / "store" / "team" / "triage" / "runs" / world.uid / str(world.run)
    files = {}
    for name, split in splits.items():
        path = root / split_path(name)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_rows(split))
        files[split_path(name)] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": len(split)}  # type: ignore[arg-type]
    (root / "prepare" / "manifest.json").write_text(json.dumps({"files": files}))
    (root / ROW_HASHES_PATH).write_bytes(b"")
    (root / "prepare" / "lineage.json").write_text(json.dumps({"sources": []}))
    return world
