"""Forecast memory, time and cost of a FineTuneJob before anything runs, and compare pools.

Needs no cluster, no GPU and no model files: a known name, a config.json or a size is enough. The numbers are the
operator's own; docs/forecast.md has the method and how far it was off from published figures.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.wording import agreeing
from finetune_cli.errors import CliError, CliExit
from finetune_cli.estimate.compare import PoolEstimate, compare, warnings
from finetune_cli.estimate.data import Counted, counted, prepared
from finetune_cli.estimate.model import KnownModel, find_model
from finetune_cli.estimate.pools import pools_of_files, pools_of_gpus
from finetune_cli.jobfile import Overrides, load_document
from finetune_cli.options import DEFAULT_STATE, STATE_VARIABLE, add_output
from finetune_cli.render.estimate import print_estimate
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_operator.planner.gpus import known_gpus
from finetune_operator.planner.trainers import Trainer, known_trainers

WORLD = "local"
EXAMPLES = """
examples:
  finetune estimate finetunejob.yaml --pool pool-a100.yaml --pool pool-l4.yaml
  finetune estimate finetunejob.yaml --rows 10000 --tokens-per-row 400 --gpu RTX-4090
  finetune estimate finetunejob.yaml --parameters 70B --rows 5000 --tokens-per-row 800
  finetune estimate finetunejob.yaml --model-config config.json -o json

exit codes:
  0    it fits a pool, or memory cannot be forecast
  1    it fits none
  2    something is wrong with the YAML, the data or an option
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML of a FineTuneJob")
    parser.add_argument(
        "--pool", type=Path, action="append", default=[], metavar="FILE", help="YAML of a GPUPool; may be repeated"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a GPU instead of a pool; may be repeated (default: all of {', '.join(g.name for g in known_gpus())})",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="rows of data.train, where it is not a local file")
    parser.add_argument("--tokens-per-row", type=int, metavar="N", help="tokens of a mean row")
    parser.add_argument(
        "--parameters", metavar="SIZE", help="size of the model, for example 8B: the nearest known shape"
    )
    parser.add_argument(
        "--trainer",
        metavar="NAME",
        help=f"show a step of another trainer with the same settings beside: {', '.join(known_trainers())}",
    )
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="the model's config.json")
    add_output(parser)


def _checked(args: argparse.Namespace) -> None:
    for name in ("rows", "tokens_per_row"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CliError(f"--{name.replace('_', '-')}: {value} is not a number of at least 1")


def _trainer(name: str | None) -> Trainer | None:
    if name is not None and name not in known_trainers():
        raise CliError(f"--trainer: {name!r} is not a known one", f"Use one of {', '.join(known_trainers())}.")
    return known_trainers()[name] if name is not None else None


def _wire(model: KnownModel, data: Counted, estimates: list[PoolEstimate]) -> dict[str, Any]:
    best = estimates[0]
    return {
        "model": {"origin": model.origin, "facts": model.facts.to_wire()},
        "data": {"origin": data.origin, "rows": data.rows, "tokensPerRow": round(data.mean)},
        "best": best.name if best.fits else None,
        "pools": [
            {
                "name": item.name,
                "plan": item.plan.to_wire() if item.plan else None,
                "forecast": item.forecast.to_wire() if item.forecast else None,
                "whyNot": item.why_not,
                "remedy": item.remedy,
                "recommended": item.advice,
                "otherStep": item.other_step.to_wire() if item.other_step else None,
                "options": [
                    {"gpusPerNode": o.gpus_per_node, "plan": o.plan.to_wire(), "forecast": o.forecast.to_wire()}
                    for o in item.options
                ],
            }
            for item in estimates
        ],
    }


def _facts(job: FineTuneJob, model: KnownModel, data: Counted, estimates: list[PoolEstimate]) -> dict[str, str]:
    facts = model.facts
    size = f"{facts.parameters / 1e9:.2f} billion parameters" if facts.parameters else "size unknown"
    blocks = f", {facts.layers} blocks of {facts.hidden_size}" if facts.layers and facts.hidden_size else ""
    told = {
        "model": f"{size}{blocks} ({model.origin})",
        "data": f"{data.rows:,} {agreeing(data.rows, 'row')} of about {data.mean:.0f} tokens ({data.origin})",
    }
    planned = next(((i.plan, i.forecast) for i in estimates if i.plan and i.forecast), None)
    if planned is not None:
        plan, known = planned
        batch, epochs = job.spec.training.global_batch_size, plan.epochs or 0.0
        told["training"] = (
            f"{plan.total_steps:,} {agreeing(plan.total_steps, 'step')} of {batch} "
            f"{agreeing(batch, 'example')} ({epochs:g} {agreeing(epochs, 'epoch')}), {known.train_tokens / 1e6:.2f} "
            f"million tokens; {job.spec.method.objective} at learning rate {plan.learning_rate:g}"
        )
        if known.minimum_detectable_gain is not None:
            metric = job.spec.evaluation.metrics[0].name
            told["test"] = (
                f"a gain of {known.minimum_detectable_gain:.3f} in {metric} can be told from chance, at worst"
            )
    return told


def run(args: argparse.Namespace) -> int:
    """Estimate; 1 when the job fits none of the pools."""
    _checked(args)
    trainer = _trainer(args.trainer)
    document, _ = load_document(args.file, Overrides())
    job = FineTuneJob.from_wire(document)
    state = Path(os.environ.get(STATE_VARIABLE, DEFAULT_STATE))
    model = find_model(
        job.spec.model.source, args.model_config, args.parameters, os.environ, [state / "models" / "hub"]
    )
    data = counted(job.spec, args.rows, args.tokens_per_row)
    pools = pools_of_files(args.pool) + pools_of_gpus(args.gpu)
    if not pools:
        pools = pools_of_gpus([gpu.name for gpu in known_gpus()])
    expected = prepared(job.spec, model.facts, data)
    estimates, told = compare(job, expected, pools, trainer), warnings(job, expected)
    if args.output == "table":
        print_estimate(console_for(), _facts(job, model, data, estimates), estimates, told, trainer)
    else:
        print_machine(_wire(model, data, estimates) | {"warnings": told}, args.output)
    known = estimates[0].forecast
    return CliExit.FAILED if known is None or known.fit == "DoesNotFit" else CliExit.SUCCEEDED
