"""What the two REST clients share: connections that are kept, and what a status means."""

import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from mlcore.serving.clients.client import (
    NotServedError,
    RequestRefusedError,
    Server,
    ServerFailedError,
    UnavailableError,
    _Retry,
)

_AGAIN = (429, 502, 503)
_SHOWN = 300  # characters of what a server says


class HttpChannel:
    """Connections to a server.

    Args:
        server: Where it listens.
        what: What is asked of whom, for messages.
    """

    def __init__(self, server: Server, what: str) -> None:
        self._what = what
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        scheme = "https" if server.secure else "http"
        access = server.access
        named = {"authorization": access.authorization, "host": access.host}
        self._client = httpx.Client(
            base_url=f"{scheme}://{server}",
            limits=limits,
            headers={name: value for name, value in named.items() if value is not None},
            verify=True if access.authority is None else ssl.create_default_context(cadata=access.authority),
        )
        # The name in TLS's greeting, by which a gateway chooses its certificate.
        self._extensions = {"sni_hostname": access.host_name} if server.secure and access.host else {}

    def close(self) -> None:
        """Close them."""
        self._client.close()

    def send(
        self,
        method: str,
        path: str,
        timeout_s: float,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request; the answer where it is a good one."""
        try:
            answer = self._client.request(
                method, path, content=content, headers=headers, timeout=timeout_s, extensions=self._extensions
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise UnavailableError(f"{self._what}: no answer within {timeout_s:.3g} s") from error
        except httpx.TransportError as error:  # refused, broken, no such name
            raise _Retry(f"{type(error).__name__}: {error}") from error
        status = answer.status_code
        if status < 300:
            return answer
        reason = f"{status} {answer.reason_phrase}: {_said(answer)}"
        text = f"{self._what}: {reason}"
        if status in _AGAIN:
            raise _Retry(reason)
        if status == 404:
            raise NotServedError(text, str(status))
        if 300 <= status < 500:
            raise RequestRefusedError(text, str(status))
        raise ServerFailedError(text, str(status))

    def read_json(self, content: bytes) -> Any:
        """The object that an answer holds."""
        try:
            found = json.loads(content)
        except ValueError as error:
            raise ServerFailedError(f"{self._what}: the answer is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise ServerFailedError(f"{self._what}: the answer is no JSON object")
        return found


def _said(answer: httpx.Response) -> str:
    """The message in an answer that is an error."""
    try:
        found = answer.json()
        text = found.get("error") or found.get("detail") or found if isinstance(found, dict) else found
    except ValueError:
        text = answer.text
    text = " ".join(str(text).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
