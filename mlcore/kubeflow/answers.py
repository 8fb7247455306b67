"""What an API server's answer means: an object, a refusal with its reason, or a failure that may pass."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlcore.runtime.errors import DataError, MlcoreError, TransientError, UsageError

if TYPE_CHECKING:
    from mlcore.kubeflow.cluster import Resource

FINAL_MISSING = ("list", "create", "patch", "watch")  # verbs for which a missing object is an error
_OVERLOADED = (408, 429, 500, 502, 503, 504)


class Forbidden(UsageError):
    """The server knows us and refuses: a Role lacks a verb."""


class Conflict(DataError):
    """An object of that name is there, another manager owns a field, or the object has another uid.

    Attributes:
        exists: Whether it is because an object of that name is there.
    """

    def __init__(self, message: str, *, exists: bool = False) -> None:
        super().__init__(message)
        self.exists = exists


class Expired(TransientError):
    """The resourceVersion is too old for the server: everything has to be listed again."""


class NotStarted(TransientError):
    """The container has no log yet."""


class Missing(UsageError):
    """There is no object of that name."""


@dataclass(frozen=True)
class Request:
    """What is asked of the server.

    Attributes:
        verb: What to do, as a Role names it.
        resource: Kind of the objects.
        namespace: Namespace.
        name: Name of the object, or empty.
        subresource: Such as `log`, or empty.
        query: Parameters of the address.
        body: Object to send.
        content_type: Its form.
    """

    verb: str
    resource: "Resource"
    namespace: str
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    content_type: str = "application/json"

    @property
    def method(self) -> str:
        """The HTTP method."""
        return {"create": "POST", "patch": "PATCH", "delete": "DELETE"}.get(self.verb, "GET")

    @property
    def path(self) -> str:
        """The address on the server."""
        return self.resource.path(self.namespace, self.name, self.subresource)

    @property
    def what(self) -> str:
        """`tfjobs.kubeflow.org in namespace team`."""
        subresource = f"/{self.subresource}" if self.subresource else ""
        return f"{self.resource.full_name}{subresource} in namespace {self.namespace}"

    @property
    def object_name(self) -> str:
        """`TFJob pets`."""
        name = self.name or ((self.body or {}).get("metadata") or {}).get("name", "")
        return f"{self.resource.kind} {name}".rstrip()


@dataclass
class Answer:
    """An answer of the server to one request.

    Attributes:
        host: The server.
        request: What was asked.
        status: HTTP status.
        headers: HTTP headers.
        text: Body, once it was read.
        response: urllib3's response, while the body is still to be read.
    """

    host: str
    request: Request
    status: int
    headers: Mapping[str, str]
    text: str | None
    response: Any = None

    def load(self) -> None:
        """Read the body.

        Raises:
            TransientError: The connection broke.
        """
        from urllib3.exceptions import HTTPError

        if self.text is not None:
            return
        try:
            self.text = self.response.data.decode(errors="replace")
        except (HTTPError, OSError) as error:
            raise TransientError(f"{self.host}: the answer was cut off ({type(error).__name__})") from error
        finally:
            self.response.release_conn()

    def lines(self) -> Iterator[bytes]:
        r"""The body, line by line as it arrives, each with its `\n`; the last without one if it was cut there.

        Raises:
            TransientError: The connection broke.
        """
        from urllib3.exceptions import HTTPError

        rest = b""
        try:
            for block in self.response.stream(65536, decode_content=True):
                *whole, rest = (rest + block).split(b"\n")
                yield from (line + b"\n" for line in whole)
        except (HTTPError, OSError, ValueError) as error:
            raise TransientError(f"{self.host}: the connection broke ({type(error).__name__})") from error
        finally:
            self.response.close()
        if rest:
            yield rest

    @property
    def body(self) -> dict[str, Any]:
        """The body as an object; empty where it is none."""
        self.load()
        try:
            value = json.loads(self.text or "")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def is_status(self) -> bool:
        """Whether the body is a Status of Kubernetes, not the page of some proxy or `404 page not found`."""
        return self.body.get("kind") == "Status"

    @property
    def object_is_missing(self) -> bool:
        """Whether the kind is known, and there is no object of that name."""
        details = self.body.get("details") or {} if self.status == 404 else {}
        return bool(details.get("name")) and details.get("kind") != "namespaces"

    def read_object(self) -> dict[str, Any]:
        """The object in the body.

        Raises:
            UsageError: It is not Kubernetes that answered.
        """
        found = self.body
        if "kind" not in found:
            raise UsageError(f"{self.host}: answers {(self.text or '')[:60]!r}, expected a Kubernetes API server")
        return found

    def read(self) -> str:
        """The body as text."""
        self.load()
        return self.text or ""

    def summary(self) -> str:
        """Server, status and message in one line."""
        message = self.body.get("message") or " ".join((self.text or "").split())[:200] or "no message"
        return f"{self.host}: {self.status} to {self.request.verb} {self.request.what}: {message}"

    def raise_for_status(self, *, missing_object_is_an_error: bool = True) -> None:
        """Say what a refusal means.

        Raises:
            MlcoreError: Of the kind that fits, unless the answer is a good one.
        """
        if self.status < 300:
            return
        error = self._error()
        if isinstance(error, Missing) and not missing_object_is_an_error:
            return
        raise error

    def _error(self) -> MlcoreError:
        body = self.body
        message = str(body.get("message") or "")
        reason = body.get("reason")
        if self.status == 401:
            return UsageError(
                f"{self.host}: does not know who is asking (401); the token or certificate of the configuration has "
                "expired or is of another cluster"
            )
        if self.status == 403:
            return self._forbidden(message)
        if self.status == 404:
            return self._missing(message)
        if self.status == 409:
            return self._conflict(reason, message)
        if self.status == 410 or reason in ("Expired", "Gone"):
            return Expired(self.summary())
        if self.status == 400 and self.request.subresource == "log":
            return NotStarted(self.summary())
        if self.status in _OVERLOADED:
            return TransientError(self.summary())
        if not self.is_status:
            return UsageError(f"{self.summary()}; expected a Kubernetes API server")
        return UsageError(f"{self.request.object_name}: refused by the server: {message}")

    def _forbidden(self, message: str) -> MlcoreError:
        if not self.is_status:
            return UsageError(f"{self.summary()}; expected a Kubernetes API server")
        if "exceeded quota" in message:
            return TransientError(f"namespace {self.request.namespace}: {message}")
        refused = re.search(r'User "([^"]*)" cannot (\w+) resource "([^"]*)"', message)
        if refused is None:  # an admission webhook, or a namespace that is being deleted
            return UsageError(f"{self.request.object_name}: refused by the server: {message}")
        user, verb, resource = refused.groups()  # an apply that creates is refused as create
        return Forbidden(
            f"{user} may not {verb} {self.request.what}; its Role lacks apiGroups: "
            f'["{self.request.resource.group}"], resources: ["{resource}"], verbs: ["{verb}"]'
        )

    def _missing(self, message: str) -> MlcoreError:
        details = self.body.get("details") or {}
        if details.get("kind") == "namespaces":
            return UsageError(f"--namespace={self.request.namespace}: {self.host} has no such namespace")
        if self.object_is_missing:
            return Missing(f"{self.host}: {message}")
        kind = self.request.resource
        return UsageError(f"{self.host}: knows no {kind.kind} ({kind.api_version}): install {kind.install}")

    def _conflict(self, reason: Any, message: str) -> MlcoreError:
        causes = (self.body.get("details") or {}).get("causes") or []
        owned = [
            f"{cause.get('field', '?')} ({cause.get('message', 'set by another manager')})"
            for cause in causes
            if cause.get("reason") == "FieldManagerConflict"
        ]
        if owned:
            return Conflict(f"{self.request.object_name}: others have set {', '.join(owned)}")
        return Conflict(f"{self.request.object_name}: {message}", exists=reason == "AlreadyExists")


def worth_another_try(answer: Answer) -> bool:
    """Whether the same request may have another answer soon."""
    if (
        answer.status == 409
    ):  # somebody else has changed the object meanwhile; not so for a name or a field that is taken
        body = answer.body
        causes = (body.get("details") or {}).get("causes") or []
        return body.get("reason") == "Conflict" and not causes and answer.request.verb != "delete"
    return answer.status in _OVERLOADED


def retry_after_s(answer: Answer) -> float:
    """How long the server asks to wait, a minute at most."""
    text = answer.headers.get("Retry-After") or ""
    return min(float(text), 60) if re.fullmatch(r"\d+", text) else 0
