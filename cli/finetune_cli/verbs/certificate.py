"""Write the Secret with the certificate of the operator's progress endpoint, for kubectl apply."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ruamel.yaml
from ruamel.yaml.error import YAMLError

from finetune_cli.certificates import authority_of, new_authority, secret_manifest, server_certificate, service_names
from finetune_cli.errors import CliError
from finetune_cli.options import checked_name
from finetune_cli.render.machine import print_machine

SECRET = "finetune-operator-tls"  # noqa: S105 - a name
SERVICE = "finetune-operator"
LONGEST_DAYS = 825
"""What TLS clients of today accept of a private authority's certificates."""

WORLD = "local"
EXAMPLES = f"""
examples:
  finetune certificate -n finetune-system | kubectl apply --server-side -f -
  kubectl get secret {SECRET} -n finetune-system -o yaml \\
    | finetune certificate -n finetune-system --renew - | kubectl apply --server-side -f -

Renewing keeps the authority, so that pods that run now go on trusting the endpoint. The operator takes the new
certificate over without a restart. With cert-manager use the component manifests/components/cert-manager instead.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument(
        "--namespace", "-n", default="finetune-system", metavar="NAME", help="the operator's (default: finetune-system)"
    )
    parser.add_argument("--service", default=SERVICE, metavar="NAME", help=f"its Service (default: {SERVICE})")
    parser.add_argument("--secret", default=SECRET, metavar="NAME", help=f"name of the Secret (default: {SECRET})")
    parser.add_argument("--days", type=int, default=365, help=f"life of the certificate, 1 to {LONGEST_DAYS} (365)")
    parser.add_argument(
        "--renew", metavar="FILE", help="the present Secret as YAML or JSON (- for stdin): its authority is kept"
    )


def run(args: argparse.Namespace) -> int:
    """Print the Secret."""
    namespace = checked_name(args.namespace, "--namespace")
    hosts = service_names(checked_name(args.service, "--service"), namespace)
    name = checked_name(args.secret, "--secret")
    if not 1 <= args.days <= LONGEST_DAYS:
        raise CliError(f"--days is {args.days}", f"Write a whole number from 1 to {LONGEST_DAYS}.")
    now = datetime.now(UTC).replace(microsecond=0)
    lifetime = timedelta(days=args.days)
    authority = authority_of(_read(args.renew), now + lifetime) if args.renew else None
    if authority is None:
        if args.renew:
            print("note: the authority ends too early and is replaced; pods that run now stop pushing", file=sys.stderr)
        authority = new_authority(now)
    certificate, key = server_certificate(authority, hosts, now, lifetime)
    print_machine(secret_manifest(name, namespace, authority, certificate, key), "yaml")
    return 0


def _read(source: str) -> dict[str, Any]:
    """A manifest. Raises CliError when it is not one."""
    fix = f"Pipe in: kubectl get secret {SECRET} -n NAMESPACE -o yaml"
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        manifest = ruamel.yaml.YAML(typ="safe", pure=True).load(text)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise CliError(f"--renew {source}: {str(error).splitlines()[0]}", fix) from error
    if not isinstance(manifest, dict):
        raise CliError(f"--renew {source}: this is not a Secret", fix)
    return manifest
