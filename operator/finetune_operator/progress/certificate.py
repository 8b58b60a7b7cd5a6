"""The endpoint's certificate: read from a folder, judged as a runner would judge it, by a TLS handshake in memory."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

CERTIFICATE_FILE, KEY_FILE, CA_FILE = "tls.crt", "tls.key", "ca.crt"
LARGEST_CA_BYTES = 64 * 1024
"""It travels in an annotation, of which a pod may have 256 KiB."""


class UnusableCertificate(Exception):
    """No runner would accept it; the message says why and what to do."""


@dataclass(frozen=True)
class Files:
    """Where the certificate is. `ca` is what runners verify it with."""

    certificate: Path
    key: Path
    ca: Path

    @classmethod
    def of(cls, folder: Path, ca: Path | None) -> Files:
        """The names of a Secret of type kubernetes.io/tls; the authority's file may be elsewhere."""
        return cls(folder / CERTIFICATE_FILE, folder / KEY_FILE, ca or folder / CA_FILE)

    def content(self) -> tuple[bytes, bytes, bytes] | None:
        """What the files hold; None when there is no certificate. Raises UnusableCertificate when one is missing."""
        if not self.certificate.exists() and not self.key.exists():
            return None
        try:
            return self.certificate.read_bytes(), self.key.read_bytes(), self.ca.read_bytes()
        except OSError as error:
            raise UnusableCertificate(
                f"{error.filename}: {error.strerror}; the Secret needs tls.crt, tls.key, ca.crt"
            ) from error


@dataclass(frozen=True)
class Certificate:
    """One that a runner accepts at this moment."""

    ca: str
    expires_at: float
    """Seconds since 1970."""


def server_context(files: Files) -> ssl.SSLContext:
    """TLS settings of the endpoint. Raises UnusableCertificate when the pair cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, files)
    return context


def load_pair(context: ssl.SSLContext, files: Files) -> None:
    """Use this pair for connections from now on. Raises UnusableCertificate."""
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as error:
        told = "key and certificate do not belong together" if "MISMATCH" in str(error) else str(error)
        raise UnusableCertificate(f"{files.certificate} with {files.key}: {told}; renew the certificate") from error


def judge(files: Files, host: str) -> Certificate:
    """What a runner that connects to `host` and trusts the authority's file makes of it. Raises UnusableCertificate."""
    server = server_context(files)
    try:
        ca = files.ca.read_bytes()
        if len(ca) > LARGEST_CA_BYTES:
            raise UnusableCertificate(
                f"{files.ca} is larger than {LARGEST_CA_BYTES} bytes; keep the issuing authority only"
            )
        client = ssl.create_default_context(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise UnusableCertificate(f"{files.ca}: {error}; it must be PEM") from error
    try:
        peer = _handshake(client, server, host)
    except ssl.SSLCertVerificationError as error:
        raise UnusableCertificate(f"{files.certificate}: {error.verify_message}; renew the certificate") from error
    except ssl.SSLError as error:
        raise UnusableCertificate(f"{files.certificate}: {error}; renew the certificate") from error
    return Certificate(ca=ca.decode("ascii"), expires_at=float(ssl.cert_time_to_seconds(str(peer["notAfter"]))))


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> dict[str, object]:
    """Both ends of a connection, joined in memory; the certificate as the client verified it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    open_ends = list(ends)
    while open_ends:
        for end in tuple(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.remove(end)
    return dict(ends[0].getpeercert() or {})


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must not be")
