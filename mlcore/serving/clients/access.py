"""What an ingress in front of a server asks for: the host that it routes by, a bearer token, a certificate to trust.

Knative and Istio route by the host, which is the service's and not the address one connects to; Kubeflow and KServe
behind an authenticating gateway take a bearer token, such as a service account's.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mlcore.runtime.errors import UsageError

TOKEN_VARIABLE = "MLCORE_SERVER_TOKEN"
_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?::\d+)?")
_TOKEN = re.compile(r"[\x21-\x7e]+")  # printable, without spaces


@dataclass(frozen=True)
class Access:
    """How a server is reached, beside its address.

    Attributes:
        host: Host to ask for in place of the address's: the header Host, gRPC's authority, and with TLS the name that
            the certificate must have.
        token: Bearer token; never shown.
        authority: PEM certificates of the authorities to trust in place of the system's.
    """

    host: str | None = None
    token: str | None = field(default=None, repr=False)
    authority: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, host_header: str | None, token_file: Path | None, ca_file: Path | None) -> "Access":
        """From the flags; without --token-file the token is taken from MLCORE_SERVER_TOKEN, if that is set.

        Raises:
            UsageError: A file cannot be read or holds something else, or the host is none.
        """
        if host_header is not None and not _HOST.fullmatch(host_header):
            raise UsageError(f"--host-header={host_header}: expected a host such as mnist.default.example.com")
        token = None
        if token_file is not None:
            token = _read(token_file, "--token-file").strip()
            _check_token(token, f"--token-file={token_file}")
        elif given := os.environ.get(TOKEN_VARIABLE):
            token = given.strip()
            _check_token(token, TOKEN_VARIABLE)
        authority = None
        if ca_file is not None:
            import ssl

            authority = _read(ca_file, "--ca-file")
            try:
                ssl.create_default_context(cadata=authority)
            except (ssl.SSLError, ValueError) as error:
                raise UsageError(f"--ca-file={ca_file}: holds no certificates in PEM form") from error
        return cls(host_header, token, authority)

    @property
    def host_name(self) -> str | None:
        """The host without its port, as certificates have it."""
        match = _HOST.fullmatch(self.host or "")
        return match["name"] if match else None

    @property
    def authorization(self) -> str | None:
        """Content of the header Authorization."""
        return None if self.token is None else f"Bearer {self.token}"


def _read(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag}={path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag}={path}: holds no text") from error


def _check_token(token: str, where: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{where}: expected a token in one line, of printable characters without spaces")
