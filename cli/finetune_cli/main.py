"""Entry point of `finetune` and of `kubectl finetune`: finds the verb, runs it, and turns errors into sentences."""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from finetune_cli.errors import EXIT_CODES_HELP, CliError, CliExit
from finetune_cli.options import KUBECTL_PROGRAM

WORLDS = {
    "cluster": "on a cluster (the current context's, or --context, --kubeconfig, -n):",
    "both": "on a cluster with `kubectl finetune`, in the local registry with `finetune` (or --cluster, --local):",
    "local": "on this machine, without a cluster:",
}
VERBS_FOLDER = Path(__file__).parent / "verbs"


class Verb(Protocol):
    """What a module in `verbs/` offers. Its docstring is its help."""

    __doc__: str | None
    WORLD: str
    """Which of `WORLDS` it knows."""
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


def verb_files() -> dict[str, Path]:
    """Verbs by name. A trailing underscore keeps a module's name off Python's keywords."""
    files = sorted(VERBS_FOLDER.glob("*.py"))
    return {file.stem.rstrip("_"): file for file in files if file.stem != "__init__"}


def _parsed(file: Path) -> ast.Module:
    # Read, not imported: the list of verbs appears at once.
    return ast.parse(file.read_text(encoding="utf-8"))


def summary_of(file: Path) -> str:
    """The first line of a verb's help."""
    return (ast.get_docstring(_parsed(file)) or "").splitlines()[0]


def _world_of(file: Path) -> str:
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORLD":
            return str(ast.literal_eval(node.value))
    raise ValueError(f"{file.name} does not say which WORLD it knows")


def _program() -> str:
    return KUBECTL_PROGRAM if Path(sys.argv[0]).name == "kubectl-finetune" else "finetune"


def _overview(program: str, verbs: dict[str, Path]) -> str:
    width = max(map(len, verbs))
    lines: list[str] = []
    for world, title in WORLDS.items():
        lines += ["", title]
        lines += [f"  {name:<{width}}  {summary_of(file)}" for name, file in verbs.items() if _world_of(file) == world]
    return "\n".join(
        [
            f"usage: {program} VERB [options]",
            "",
            "Fine-tunes a language model from one YAML, with or without a cluster, and keeps what comes out as a",
            "version with an evaluation, a gate and an approval.",
            *lines,
            "",
            f"  {program} VERB --help    arguments and examples of one verb",
            "",
            EXIT_CODES_HELP.replace("exit codes:", "exit codes: (of run; watch and wait have their own)"),
        ]
    )


def _parser(program: str, name: str, verb: Verb) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} {name}",
        description=verb.__doc__,
        epilog=verb.EXAMPLES.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    parser.set_defaults(program=program)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return parser


def _run(program: str, arguments: Sequence[str]) -> int:
    verbs = verb_files()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(program, verbs), file=sys.stdout if arguments else sys.stderr)
        return CliExit.SUCCEEDED if arguments else CliExit.USAGE
    name, rest = ("version", arguments[1:]) if arguments[0] == "--version" else (arguments[0], arguments[1:])
    if name not in verbs:
        close = difflib.get_close_matches(name, verbs, n=1)
        hint = f"Did you mean `{program} {close[0]}`?" if close else f"`{program} --help` lists the verbs."
        raise CliError(f"there is no verb {name!r}", hint)
    verb = cast("Verb", importlib.import_module(f"finetune_cli.verbs.{verbs[name].stem}"))
    return verb.run(_parser(program, name, verb).parse_args(rest))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Every error becomes a sentence with its fix; `--debug` shows the traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = _run(_program(), [word for word in given if word != "--debug"] if given[:1] == ["--debug"] else given)
        sys.stdout.flush()
        return int(code)
    except CliError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.fix:
            print(f"  {error.fix}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(CliExit.SUSPENDED)
    except BrokenPipeError:
        # The reader (head, less) is gone; what remains in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(CliExit.FAILED)
    except Exception as error:
        if debug:
            raise
        print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  Add --debug for the traceback, and please report it.", file=sys.stderr)
        return int(CliExit.FAILED)


if __name__ == "__main__":
    sys.exit(main())
