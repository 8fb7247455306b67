"""A Kubernetes API server: how it is found, asked, and what its answers mean for the one who asked.

The connection (kubeconfig, service account, certificates, tokens) is the official client's. Objects are plain JSON, and
addresses are made from the few kinds that steps use: nothing is asked of the server but what a Role must allow anyway.
"""

import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from mlcore.kubeflow.answers import FINAL_MISSING, Answer, Expired, Request, retry_after_s, worth_another_try
from mlcore.runtime.errors import TransientError, UsageError
from mlcore.runtime.extras import require

log = logging.getLogger(__name__)

FIELD_MANAGER = "mlcore"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object as the API server has it.

    Attributes:
        group: API group; empty for the core group.
        version: Version of the API.
        plural: Name in addresses and Roles.
        kind: Name in manifests.
        install: What has to be in the cluster for it.
    """

    group: str
    version: str
    plural: str
    kind: str
    install: str = "a newer Kubernetes"

    @property
    def api_version(self) -> str:
        """`kubeflow.org/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """`tfjobs.kubeflow.org`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The address on the server."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version, "namespaces", quote(namespace, safe=""), self.plural]
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("", "v1", "events", "Event")


@dataclass(frozen=True)
class Timing:
    """How long things may take, in seconds.

    Attributes:
        connect_s: A connection.
        answer_s: An answer, without a byte.
        patience_s: One request with all its repetitions.
        backoff_s: First wait before a repetition; it doubles, up to `backoff_max_s`.
        backoff_max_s: Longest such wait.
        watch_s: After how long the server ends a watch, so that a dead connection is noticed.
        outage_s: How long following a job survives a server that does not answer.
        log_silence_s: A connection to a log, without a byte.
        log_poll_s: Between two looks whether a container has begun to write a log.
        log_end_s: Wait for the rest of a log once the job has ended.
        gone_s: Wait for an object, and then for its pods, to be gone after it was deleted.
        stop_s: All that is done after SIGTERM.
        settle_s: How long a failure has to last, or a status to stay as it was, before it is believed.
        rollback_s: Wait for the former state to be served again.
    """

    connect_s: float = 10
    answer_s: float = 30
    patience_s: float = 60
    backoff_s: float = 0.5
    backoff_max_s: float = 10
    watch_s: int = 60
    outage_s: float = 300
    log_silence_s: float = 300
    log_poll_s: float = 1
    log_end_s: float = 15
    gone_s: float = 60
    stop_s: float = 7.5
    settle_s: float = 15
    rollback_s: float = 120

    def bounded(self, timeout_s: float) -> "Timing":
        """The same, with no request repeated for longer than `timeout_s`."""
        return replace(self, patience_s=min(self.patience_s, timeout_s))


class Cluster:
    """One API server.

    Args:
        client: `kubernetes.client.ApiClient`, ready to use.
        namespace: The namespace that the configuration names.
        timing: Waits and bounds.
    """

    def __init__(self, client: Any, namespace: str, timing: Timing) -> None:
        self.client = client
        self.host: str = client.configuration.host
        self.namespace = namespace
        self.timing = timing
        self._closed = threading.Event()

    def close(self) -> None:
        """Ask for nothing more, and repeat nothing; watches end with their next event."""
        self._closed.set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is asked any more."""
        return self._closed.is_set()

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object, or None where there is none of that name.

        Raises:
            MlcoreError: The server refuses, or does not answer.
        """
        answer = self._ask(Request("get", resource, namespace, name))
        return None if answer.object_is_missing else answer.read_object()

    def list(self, resource: Resource, namespace: str, selectors: Mapping[str, str]) -> Object:
        """The objects that the selectors name, as a list object with its resourceVersion.

        Raises:
            MlcoreError: The server refuses, or does not answer.
        """
        return self._ask(Request("list", resource, namespace, query=selectors)).read_object()

    def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Create an object; unknown fields are errors.

        Raises:
            Conflict: One of that name is there.
            MlcoreError: The server refuses, or does not answer.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return self._ask(Request("create", resource, namespace, query=query, body=body)).read_object()

    def apply(self, resource: Resource, namespace: str, body: Object, *, force: bool) -> Object:
        """Create or update an object by server-side apply; unknown fields are errors.

        Raises:
            Conflict: Another manager has set one of the fields to something else, and not `force`.
            MlcoreError: The server refuses, or does not answer.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": str(force).lower()}
        request = Request(
            "patch", resource, namespace, body["metadata"]["name"], query=query, body=body,
            content_type="application/apply-patch+yaml",
        )  # fmt: skip
        return self._ask(request).read_object()

    def delete(self, resource: Resource, namespace: str, name: str, *, uid: str | None) -> bool:
        """Delete an object and, in the background, what belongs to it; whether it was there.

        Args:
            resource: Its kind.
            namespace: Its namespace.
            name: Its name.
            uid: Its uid: another object that has taken its name is left alone.

        Raises:
            Conflict: It has another uid.
            MlcoreError: The server refuses, or does not answer.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        answer = self._ask(Request("delete", resource, namespace, name, body=body))
        return not answer.object_is_missing

    def stream(self, request: Request, *, silence_s: float) -> Answer:
        """An answer whose body is still to be read, without any repetition: a watch or a log.

        Args:
            request: What is asked.
            silence_s: Most time without a byte.

        Raises:
            MlcoreError: The server refuses, or does not answer.
        """
        answer = self._once(request, (self.timing.connect_s, silence_s))
        answer.raise_for_status()
        return answer

    def _ask(self, request: Request) -> Answer:
        """Ask until there is an answer that will not change by itself.

        Every request may be repeated: names are ours, so a second creation conflicts with the first.

        Raises:
            TransientError: No such answer in time.
        """
        patience_s = self.timing.patience_s
        end = time.monotonic() + patience_s
        wait_s = self.timing.backoff_s
        while True:
            if self._closed.is_set():
                raise TransientError(f"{self.host}: is not asked any more")
            left_s = max(end - time.monotonic(), 0.1)
            failure: TransientError
            delay_s = wait_s * random.uniform(0.5, 1)
            try:
                answer = self._once(request, (min(self.timing.connect_s, left_s), min(self.timing.answer_s, left_s)))
                answer.load()
                if not worth_another_try(answer):
                    answer.raise_for_status(missing_object_is_an_error=request.verb in FINAL_MISSING)
                    return answer
                failure = TransientError(answer.summary())
                delay_s = max(delay_s, retry_after_s(answer))
            except Expired:
                raise
            except TransientError as error:
                failure = error
            if time.monotonic() + delay_s >= end:
                raise TransientError(f"{failure} (tried for {patience_s:.0f} s)") from failure
            log.warning("%s; asking again in %.1f s", failure, delay_s)
            time.sleep(delay_s)
            wait_s = min(2 * wait_s, self.timing.backoff_max_s)

    def _once(self, request: Request, timeouts_s: tuple[float, float]) -> Answer:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        try:
            response = self.client.call_api(
                request.path,
                request.method,
                query_params=list(request.query.items()),
                header_params={"Content-Type": request.content_type, "Accept": "application/json, */*"},
                body=request.body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeouts_s,
            )
        except ApiException as error:
            if not error.status:  # the client's way to tell of TLS errors
                raise self._untrusted(error.reason) from error
            text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
            return Answer(self.host, request, error.status, error.headers or {}, text)
        except SSLError as error:
            raise self._untrusted(str(error)) from error
        except (HTTPError, OSError) as error:
            raise TransientError(f"{self.host}: no answer ({_reason(error)})") from error
        return Answer(self.host, request, response.status, response.headers, None, response)

    def _untrusted(self, reason: str) -> UsageError | TransientError:
        text = " ".join(str(reason).split())
        if "certificate" in text.lower():
            return UsageError(
                f"{self.host}: the configuration's certificate authority does not vouch for its certificate ({text})"
            )
        return TransientError(f"{self.host}: no secure connection ({text})")


def _reason(error: BaseException) -> str:
    """The innermost cause of a failed connection, in few words."""
    text = str(error.args[-1] if error.args else error) or type(error).__name__
    return " ".join(text.rpartition(": ")[2].split())


def connect(
    *,
    context: str | None = None,
    timing: Timing | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Cluster:
    """The cluster that a kubeconfig or the pod's own service account names.

    Looked for in this order: the kubeconfig if `context` or KUBECONFIG is given, the service account of the pod,
    ~/.kube/config.

    Args:
        context: Context of the kubeconfig; default: its current one.
        timing: Waits and bounds.
        service_account: Folder with the token of the pod.

    Raises:
        UsageError: There is no configuration, it is broken, or the package `kubernetes` is not installed.
    """
    require("kubernetes", "kubeflow")
    from kubernetes import client, config
    from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME, InClusterConfigLoader

    configuration = client.Configuration()
    configuration.retries = False  # repetitions are ours: they must be bounded, and said
    named = os.environ.get("KUBECONFIG")
    in_pod = bool(os.environ.get(SERVICE_HOST_ENV_NAME)) and (service_account / "token").is_file()
    default = Path("~/.kube/config").expanduser()
    if not (context or named) and in_pod:
        try:
            InClusterConfigLoader(
                token_filename=str(service_account / "token"), cert_filename=str(service_account / "ca.crt")
            ).load_and_set(configuration)
            namespace = _text_of(service_account / "namespace")
        except (config.ConfigException, OSError) as error:
            raise UsageError(f"{service_account}: cannot be used ({error})") from error
    else:
        if not named and not default.is_file():
            raise UsageError(
                "no cluster is configured: set KUBECONFIG, have ~/.kube/config, or run in a pod with a service account"
            )
        namespace = _load_kubeconfig(named or str(default), context, configuration)
    configuration.proxy = configuration.proxy or _proxy_of(configuration.host)
    log.debug("API server %s", configuration.host)
    return Cluster(client.ApiClient(configuration), namespace or "default", timing or Timing())


def _proxy_of(host: str) -> str | None:
    """The proxy that the environment names for this server, as kubectl takes it: never for this machine."""
    parts = urlsplit(host)
    name = parts.hostname or ""
    if name == "localhost" or name.startswith("127.") or name == "::1" or proxy_bypass(name):
        return None
    return getproxies().get(parts.scheme)


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _load_kubeconfig(files: str, context: str | None, configuration: Any) -> str:
    """Read the kubeconfig into the client's configuration; the namespace of the context, or nothing."""
    import yaml
    from kubernetes import config

    try:
        config.load_kube_config(files, context, client_configuration=configuration, persist_config=False)
        contexts, current = config.list_kube_config_contexts(files)
    except config.ConfigException as error:
        flag = f"--context={context}: " if context else ""
        raise UsageError(f"{flag}kubeconfig {files}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(f"kubeconfig {files}: cannot be read ({type(error).__name__}: {error})") from error
    chosen = next((each for each in contexts if each["name"] == context), current) if context else current
    return str((chosen.get("context") or {}).get("namespace") or "")


def canonical(value: Any) -> str:
    """JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
