"""The certificate of the progress endpoint: an authority of its own and a server certificate. Pure but for the keys."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from finetune_cli.errors import CliError

AUTHORITY_LIFETIME = timedelta(days=3650)
CLOCK_SKEW = timedelta(minutes=5)
AUTHORITY_KEY = "ca.key"
"""Key of the Secret that renewing needs. The operator's pod mounts the other three only."""


@dataclass(frozen=True)
class Authority:
    """Whom runners trust."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_authority(now: datetime) -> Authority:
    """A self-signed authority that signs server certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator progress authority")])
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def server_certificate(
    authority: Authority, hosts: Sequence[str], now: datetime, lifetime: timedelta
) -> tuple[bytes, bytes]:
    """Certificate and key for these DNS names, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator")])
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.certificate.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def service_names(service: str, namespace: str) -> list[str]:
    """What a Service is called inside a cluster."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}", service]


def secret_manifest(name: str, namespace: str, authority: Authority, certificate: bytes, key: bytes) -> dict[str, Any]:
    """The Secret that the operator's Deployment mounts."""
    files = {
        "tls.crt": certificate,
        "tls.key": key,
        "ca.crt": authority.certificate.public_bytes(serialization.Encoding.PEM),
        AUTHORITY_KEY: _pem(authority.key),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "finetune-operator"},
        },
        "type": "kubernetes.io/tls",
        "data": {file: base64.b64encode(content).decode() for file, content in files.items()},
    }


def authority_of(secret: Mapping[str, Any], needed_until: datetime) -> Authority | None:
    """The authority kept in a Secret; None when it ends too early. Raises CliError when there is none."""
    data = secret.get("data")
    if secret.get("kind") != "Secret" or not isinstance(data, dict):
        raise CliError("--renew: this is not a Secret", "Pipe in: kubectl get secret NAME -n NAMESPACE -o yaml")
    missing = [file for file in ("ca.crt", AUTHORITY_KEY) if file not in data]
    if missing:
        raise CliError(
            f"--renew: the Secret has no {' and no '.join(missing)}",
            "It was made by something else, which has to renew it; or make a new one without --renew.",
        )
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data["ca.crt"], validate=True))
        key = serialization.load_pem_private_key(base64.b64decode(data[AUTHORITY_KEY], validate=True), password=None)
    except (ValueError, TypeError, binascii.Error) as error:
        raise CliError(
            f"--renew: ca.crt or {AUTHORITY_KEY} cannot be read: {error}", "Make a new one without --renew."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CliError(f"--renew: {AUTHORITY_KEY} is not the key of ca.crt", "Make a new one without --renew.")
    return Authority(certificate, key) if certificate.not_valid_after_utc >= needed_until else None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
