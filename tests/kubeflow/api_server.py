"""A small Kubernetes API server: the real REST paths, answers and errors, over HTTP or TLS, with faults on demand.

Bodies are validated against the definitions in shared/crds. What is not here: discovery, admission defaults, quotas,
paging, protobuf.
"""

import contextlib
import http.server
import importlib.util
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from tests.kubeflow.object_store import Key, Object, Refusal, Store, missing

TOKEN = "token-of-the-tests"
USER = "system:serviceaccount:team:runner"
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/(?P<version>[^/]+))/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?"
)
VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


@dataclass
class Fault:
    """Something that goes wrong with the next requests of a kind.

    Attributes:
        verb: get, list, watch, create, patch, delete; empty: any.
        resource: Plural, with `/log` for logs; empty: any.
        status: Answer with this HTTP status.
        headers: And these headers.
        reason: Reason of the Status; empty: a plain text body, as proxies send it.
        drop: `before` or `after` the work is done: close the connection without an answer.
        cut_after: Lines of a stream after which the connection breaks, in the middle of the next one.
        gone_event: A watch begins with an ERROR event of code 410.
        wait_s: Answer that much later.
        times: How often.
    """

    verb: str = ""
    resource: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = "InternalError"
    drop: str = ""
    cut_after: int | None = None
    gone_event: bool = False
    wait_s: float = 0
    times: int = 1


class Definitions:
    """The CustomResourceDefinitions of shared/crds."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("crd_validation", folder / "validate.py")
        assert spec is not None and spec.loader is not None
        self._rules = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._rules)
        self.raw: dict[tuple[str, str], Object] = {}
        for name in ("kubeflow.org_tfjobs", "trainer.kubeflow.org_trainjobs", "serving.kserve.io_inferenceservices"):
            for document in yaml.load_all((folder / f"{name}.yaml").read_text(), yaml.CSafeLoader):
                for version in document["spec"]["versions"]:
                    key = (f"{document['spec']['group']}/{version['name']}", document["spec"]["names"]["kind"])
                    self.raw[key] = version["schema"]["openAPIV3Schema"]
        self._schemas = {key: self._rules.strict(schema, True) for key, schema in self.raw.items()}
        katib = json.loads((folder / "katib_v1beta1_swagger.json").read_text())["definitions"]
        experiment = self._rules.deref("v1beta1.Experiment", katib)
        assert experiment, "Katib's definitions have no Experiment"
        experiment["properties"]["metadata"] = {"type": "object"}
        self._schemas["kubeflow.org/v1beta1", "Experiment"] = experiment

    def check(self, body: Object, name: str) -> None:
        """Refuse a body as the server and its webhooks do."""
        key = (body.get("apiVersion"), body.get("kind"))
        schema = self._schemas.get(key)
        if schema is None:
            return
        for error in jsonschema.Draft7Validator(schema).iter_errors(body):
            at = ".".join(map(str, error.absolute_path))
            if error.validator == "additionalProperties":
                field_name = re.findall(r"'([^']+)'", error.message)[0]
                raise Refusal(
                    400, "BadRequest", f'strict decoding error: unknown field "{f"{at}." if at else ""}{field_name}"'
                )
            group = body["apiVersion"].split("/")[0]
            raise Refusal(422, "Invalid", f'{key[1]}.{group} "{name}" is invalid: {at}: {error.message[:200]}')
        if key == ("kubeflow.org/v1", "TFJob"):
            for problem in self._rules.webhook_tfjob(body):
                webhook = "validator.tfjob.training-operator.kubeflow.org"
                raise Refusal(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {problem}')


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        api = self.server.api
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        match = PATH.fullmatch(split.path)
        if match is None:
            self._text(404, "404 page not found\n")
            return
        verb = VERBS.get(self.command, "get")
        if verb == "get" and not match["name"]:
            verb = "watch" if query.get("watch") == "true" else "list"
        resource = match["plural"] + (f"/{match['sub']}" if match["sub"] else "")
        api.requests.append((verb, resource, match["name"] or "", query, self.headers.get("Content-Type") or ""))
        fault = api.take_fault(verb, resource)
        if fault.wait_s:
            time.sleep(fault.wait_s)
        if fault.drop == "before":
            self._hang_up()
            return
        if fault.status:
            self._fail(fault)
            return
        try:
            api.authorise(self.headers.get("Authorization"), verb, resource, match["group"] or "", match["namespace"])
            plural = "/".join(filter(None, (match["group"], match["plural"])))
            if not api.serves(match["group"], match["version"], match["plural"]):
                self._text(404, "404 page not found\n")
                return
            key = (plural, match["namespace"], match["name"] or "")
            if verb == "patch" and api.store.get(key) is None:  # an apply that creates
                api.authorise(
                    self.headers.get("Authorization"), "create", resource, match["group"] or "", match["namespace"]
                )
            if verb == "watch":
                self._watch(key, query, fault)
            elif match["sub"] == "log":
                self._log(key, query, fault)
            else:
                code, answer = api.handle(verb, key, match["sub"] or "", query, body, self.headers.get("Content-Type"))
                if fault.drop == "after":
                    self._hang_up()
                else:
                    self._json(code, answer)
        except Refusal as refusal:
            self._json(refusal.status["code"], refusal.status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _fail(self, fault: Fault) -> None:
        if not fault.reason:
            self._text(fault.status, "<html>something between us is broken</html>", fault.headers)
            return
        refusal = Refusal(fault.status, fault.reason, f"an error of the tests ({fault.status})")
        self._json(fault.status, refusal.status, fault.headers)

    def _json(self, code: int, answer: Object, headers: dict[str, str] | None = None) -> None:
        self._text(code, json.dumps(answer), headers, "application/json")

    def _text(self, code: int, text: str, headers: dict[str, str] | None = None, kind: str = "text/plain") -> None:
        data = text.encode()
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, lines: Iterator[bytes], kind: str, fault: Fault) -> None:
        """Send lines as they come, in chunks, until they end or the connection is to break."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number, line in enumerate(lines):
                if number == fault.cut_after:
                    part = line[: max(len(line) // 2, 1)]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.flush()
                    self._hang_up()
                    return
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _watch(self, key: Key, query: dict[str, str], fault: Fault) -> None:
        api = self.server.api
        since = int(query.get("resourceVersion") or 0)
        expired = Refusal(410, "Expired", f"too old resource version: {since} ({api.store.version})").status
        if since < api.store.forgotten:
            self._json(410, expired)
            return
        lines = api.events(key, query, since)
        if fault.gone_event:
            lines = iter([json.dumps({"type": "ERROR", "object": expired}).encode() + b"\n"])
        self._stream(lines, "application/json", fault)

    def _log(self, key: Key, query: dict[str, str], fault: Fault) -> None:
        lines = self.server.api.log_lines(key, query)
        self._stream(lines, "text/plain", fault)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    api: "ApiServer"

    def handle_error(self, *_: object) -> None:
        pass  # clients that go away are what the tests are about


class ApiServer:
    """The server and what is in it.

    Args:
        crds: The folder shared/crds.
        tls: Server side of a TLS connection.

    Attributes:
        store: The objects.
        requests: (verb, resource, name, query, content type) of each request.
        faults: What goes wrong next.
        denied: (verb, resource) that the user may not do.
        rules: Rules of the only Role that the user has; None: everything else is allowed.
        installed: Kinds of objects: group/plural -> (version, kind).
        namespaces: The namespaces there are.
        bookmark_s: Seconds between the bookmarks of a watch.
    """

    def __init__(self, definitions: Definitions, tls: ssl.SSLContext | None = None) -> None:
        self.definitions = definitions
        self.store = Store()
        self.requests: list[tuple[str, str, str, dict[str, str], str]] = []
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        self.rules: list[Object] | None = None
        self.namespaces = {"team"}
        self.bookmark_s = 0.5
        self.installed = {
            "pods": ("v1", "Pod"), "events": ("v1", "Event"), "batch/jobs": ("v1", "Job"),
            "kubeflow.org/tfjobs": ("v1", "TFJob"), "kubeflow.org/experiments": ("v1beta1", "Experiment"),
            "trainer.kubeflow.org/trainjobs": ("v1alpha1", "TrainJob"),
            "serving.kserve.io/inferenceservices": ("v1beta1", "InferenceService"),
        }  # fmt: skip
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def serving(self) -> Iterator["ApiServer"]:
        """Answers requests as long as the block runs."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def kubeconfig(self, path: Path, *, token: str = TOKEN, namespace: str = "team", server: str = "") -> Path:
        """Write a kubeconfig for this server."""
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": server or self.url}}],
            "users": [{"name": "runner", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "runner", "namespace": namespace}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    def take_fault(self, verb: str, resource: str) -> Fault:
        """The fault that this request meets; an empty one for none."""
        with self.store.changed:
            for fault in self.faults:
                if fault.times > 0 and fault.verb in ("", verb) and fault.resource in ("", resource):
                    fault.times -= 1
                    return fault
        return Fault()

    def serves(self, group: str | None, version: str | None, plural: str) -> bool:
        """Whether the kind is installed."""
        known = self.installed.get("/".join(filter(None, (group, plural))))
        return known is not None and known[0] == (version or "v1")

    def authorise(self, header: str | None, verb: str, resource: str, group: str, namespace: str) -> None:
        """Refuse strangers with 401, and what a Role would have to allow with 403."""
        if (header or "").lower() != f"bearer {TOKEN}".lower():
            raise Refusal(401, "Unauthorized", "Unauthorized")
        allowed = self.rules is None or any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )
        if (verb, resource) in self.denied or not allowed:
            plural = resource.split("/", maxsplit=1)[0]
            name = f"{plural}.{group}" if group else plural
            raise Refusal(
                403, "Forbidden",
                f'{name} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group "{group}" in the '
                f'namespace "{namespace}"',
                {"kind": plural, "group": group},
            )  # fmt: skip

    def handle(
        self, verb: str, key: Key, sub: str, query: dict[str, str], body: Any, content_type: str | None
    ) -> tuple[int, Object]:
        """Everything but streams."""
        plural, namespace, name = key
        if verb == "list":
            version, kind = self.installed[plural]
            group = plural.rpartition("/")[0]
            items = [found for found in self.store.list(plural, namespace) if _selected(found, query)]
            return 200, {
                "apiVersion": f"{group}/{version}" if group else version, "kind": f"{kind}List",
                "metadata": {"resourceVersion": str(self.store.version)}, "items": items,
            }  # fmt: skip
        if verb == "get":
            found = self.store.get(key)
            if found is None:
                raise missing(key)
            return 200, found
        if verb == "delete":
            found = self.store.delete(key, ((body or {}).get("preconditions") or {}).get("uid"))
            details = {"name": name, "kind": plural.rpartition("/")[2], "uid": found["metadata"]["uid"]}
            return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        if namespace not in self.namespaces:
            details = {"name": namespace, "kind": "namespaces"}
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found', details)
        assert query.get("fieldValidation") == "Strict", "a typing error in a field would be lost"
        if verb == "create":
            name = body["metadata"]["name"]
            self.definitions.check(body, name)
            body.pop("status", None)
            return 201, self.store.create((plural, namespace, name), body, query.get("fieldManager", "unknown"))
        if verb == "patch" and content_type == "application/apply-patch+yaml":
            if not query.get("fieldManager"):
                raise Refusal(400, "BadRequest", "PatchOptions.meta.k8s.io: fieldManager is required for apply patch")
            if "managedFields" in body["metadata"]:
                raise Refusal(400, "BadRequest", "metadata.managedFields must be nil")
            self.definitions.check(body, name)
            schema = self.definitions.raw.get((body["apiVersion"], body["kind"]), {})
            force = query.get("force") == "true"
            found, new = self.store.apply(key, body, query["fieldManager"], force, schema)
            return (201 if new else 200), found
        raise Refusal(415, "UnsupportedMediaType", f"{verb} {content_type} {sub} is not supported")

    def events(self, key: Key, query: dict[str, str], since: int) -> Iterator[bytes]:
        """The events of a watch."""
        end = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        seen, bookmarked = since, time.monotonic()
        kind = self.installed[key[0]][1]
        while True:
            with self.store.changed:
                news = [
                    (version, what, found)
                    for version, what, plural, found in self.store.history
                    if version > seen and plural == key[0] and found["metadata"].get("namespace") == key[1]
                ]
                if not news:
                    self.store.changed.wait(0.1)
                current = self.store.version
            for version, what, found in news:
                seen = version
                if _selected(found, query):
                    yield json.dumps({"type": what, "object": found}).encode() + b"\n"
            if query.get("allowWatchBookmarks") == "true" and time.monotonic() - bookmarked > self.bookmark_s:
                bookmarked = time.monotonic()
                if not news:
                    mark = {"kind": kind, "metadata": {"resourceVersion": str(current), "creationTimestamp": None}}
                    yield json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n"
            if time.monotonic() > end:
                return

    def log_lines(self, key: Key, query: dict[str, str]) -> Iterator[bytes]:
        """The log of a container, with times; followed until the container has ended."""
        pod = self.store.get(key)
        if pod is None:
            raise missing(key)
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        container = next((each for each in statuses if each["name"] == query.get("container")), None)
        names = [each["name"] for each in pod["spec"]["containers"]]
        if query.get("container") not in names:
            raise Refusal(400, "BadRequest", f"container {query.get('container')} is not valid for pod {key[2]}")
        if container is None or "waiting" in container["state"]:
            raise Refusal(
                400, "BadRequest",
                f'container "{query["container"]}" in pod "{key[2]}" is waiting to start: ContainerCreating',
            )  # fmt: skip
        return self._log_lines(key, pod["metadata"]["uid"], query)

    def _log_lines(self, key: Key, uid: str, query: dict[str, str]) -> Iterator[bytes]:
        since = query.get("sinceTime", "")[:19]
        sent = 0
        if "tailLines" in query:
            sent = max(len(self.store.logs.get((key[1], key[2], uid), [])) - int(query["tailLines"]), 0)
        while True:
            with self.store.changed:
                pod = self.store.objects.get(key)
                running = pod is not None and pod["metadata"]["uid"] == uid and pod["status"].get("phase") == "Running"
                news = self.store.logs.get((key[1], key[2], uid), [])[sent:]
                if not news and running and query.get("follow") == "true":
                    self.store.changed.wait(0.1)
                    continue
            sent += len(news)
            for line in news:
                if line[:19] >= since:
                    text = line if query.get("timestamps") == "true" else line.partition(" ")[2]
                    yield text.encode() + b"\n"
            if not running or query.get("follow") != "true":
                return


def _selected(found: Object, query: dict[str, str]) -> bool:
    for wanted in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = wanted.partition("=")
        at: Any = found
        for part in path.split("."):
            at = at.get(part, {})
        if at != value:
            return False
    labels = found["metadata"].get("labels") or {}
    pairs = [each.split("=") for each in query.get("labelSelector", "").split(",") if each]
    return all(labels.get(name) == value for name, value in pairs)
