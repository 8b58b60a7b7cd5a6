"""Ask a published version and its untuned base the same question: `python -m finetune_runner.generate`.

Prints one JSON object {"baseline": text, "tuned": text} on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.common import SecretRef
from finetune_runner.context import Environment
from finetune_runner.data.rows import Message
from finetune_runner.errors import classify
from finetune_runner.evaluation.version import download_version, read_manifest
from finetune_runner.reporting import set_up_logging
from finetune_runner.secret_files import Secrets
from finetune_runner.storage import open_storage

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer once with the base and once with the version; the exit code is the contract's."""
    parser = argparse.ArgumentParser(prog="python -m finetune_runner.generate", description=__doc__)
    parser.add_argument("--version-uri", required=True, help="folder of the version, s3:// or file://")
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--text", required=True, help="what the user says")
    parser.add_argument("--system", help="system prompt for both")
    parser.add_argument("--baseline-prompt", help="system prompt for the base alone")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer; default: as in the evaluation")
    parser.add_argument("--endpoint", help="URL of an S3-compatible service")
    parser.add_argument("--secret", help="name of the Secret's folder with the storage keys")
    arguments = parser.parse_args(argv)
    set_up_logging()
    logging.getLogger().setLevel(logging.WARNING)
    try:
        answers = ask(arguments, Environment.of(os.environ, tempfile.gettempdir()))
    except Exception as error:  # noqa: BLE001 - a person reads this: the cause and the fix, not a traceback
        cause = classify(error)
        log.error("%s: %s. %s", cause.cause, cause.message, cause.hint)
        return int(cause.exit_code)
    sys.stdout.write(json.dumps(answers, ensure_ascii=False) + "\n")
    return 0


def ask(arguments: argparse.Namespace, environment: Environment) -> dict[str, Any]:
    """Both answers. Raises StageError when the version or the model cannot be read."""
    from finetune_runner.evaluation.serving import load_plain
    from finetune_runner.training.device import pick_device
    from finetune_runner.training.loading import load_base, load_tokenizer, method_of_weights, with_adapter

    secret = SecretRef(name=arguments.secret) if arguments.secret else None
    storage = open_storage(
        arguments.version_uri, Secrets(environment.secrets), secret_ref=secret, endpoint=arguments.endpoint
    )
    manifest = read_manifest(storage, arguments.version_uri)
    limit = arguments.max_new_tokens or manifest["generation"]["maxNewTokens"]
    question: list[Message] = [{"role": "user", "content": arguments.text}]
    if arguments.system:
        question.insert(0, {"role": "system", "content": arguments.system})
    device = pick_device(None)
    with tempfile.TemporaryDirectory(dir=environment.scratch) as scratch:
        folder = download_version(storage, arguments.version_uri, manifest, Path(scratch) / "version")
        base = load_base(arguments.model, method_of_weights(manifest["base"]["weights"]), device, None)
        # The version's tokenizer is the base's, with the chat template that was trained.
        tokenizer = load_tokenizer(folder)
        baseline = _answer(base, tokenizer, question, arguments.baseline_prompt, limit)
        model = load_plain(folder, device) if manifest["servedAs"] == "merged" else with_adapter(base, folder)
        tuned = _answer(model, tokenizer, question, None, limit)
    return {"baseline": baseline, "tuned": tuned}


def _answer(model: Any, tokenizer: Any, question: list[Message], system: str | None, limit: int) -> str:
    from finetune_runner.evaluation.generation import generate, settings_for
    from finetune_runner.evaluation.prompts import with_system
    from finetune_runner.evaluation.systems import renderable
    from finetune_runner.text import encode_prompt

    prompt = encode_prompt(tokenizer, renderable(tokenizer, with_system(question, system)))
    return generate(model, [prompt], tokenizer, settings_for(model, tokenizer, limit))[0].text


if __name__ == "__main__":
    sys.exit(main())
