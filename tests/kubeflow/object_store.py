"""What an API server keeps: objects with versions and owners of fields, their history, logs; and server-side apply."""

import copy
import datetime
import itertools
import json
import threading
import uuid
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]  # group/plural, namespace, name
METADATA_OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


class Refusal(Exception):
    """A Status answer of kind Failure."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "details": details or {}, "code": code,
        }  # fmt: skip


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Objects, and everything that ever happened to them."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[Key, Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []  # version, type, group/plural, object
        self.forgotten = 0  # watches from before this version get 410
        self.logs: dict[tuple[str, str, str], list[str]] = {}  # namespace, pod, uid -> lines with their times
        self._versions = itertools.count(1)
        self.version = 0

    def _record(self, what: str, key: Key, found: Object) -> Object:
        self.version = next(self._versions)
        found["metadata"]["resourceVersion"] = str(self.version)
        if what == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = found
        self.history.append((self.version, what, key[0], copy.deepcopy(found)))
        self.changed.notify_all()
        return copy.deepcopy(found)

    def get(self, key: Key) -> Object | None:
        with self.changed:
            return copy.deepcopy(self.objects.get(key))

    def list(self, plural: str, namespace: str | None = None) -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(found)
                for key, found in self.objects.items()
                if key[0] == plural and namespace in (None, key[1])
            ]

    def create(self, key: Key, body: Object, manager: str = "unknown") -> Object:
        with self.changed:
            plural, namespace, name = key
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{_full(plural)} "{name}" already exists', _details(key))
            found = copy.deepcopy(body)
            found["metadata"] |= {
                "namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": now(),
                "managedFields": [owner(manager, "Update", body["apiVersion"], leaves(body))],
            }  # fmt: skip
            return self._record("ADDED", key, found)

    def replace(self, key: Key, change: Any) -> Object | None:
        """Apply a function to an object in place; None where there is none. The generation follows the spec."""
        with self.changed:
            before = self.objects.get(key)
            if before is None:
                return None
            found = copy.deepcopy(before)
            change(found)
            if found == before:
                return found
            if found.get("spec") != before.get("spec"):
                found["metadata"]["generation"] += 1
            return self._record("MODIFIED", key, found)

    def delete(self, key: Key, uid: str | None = None) -> Object:
        """Delete an object and all that it owns, as the garbage collector does."""
        with self.changed:
            found = self.objects.get(key)
            if found is None:
                raise missing(key)
            if uid is not None and uid != found["metadata"]["uid"]:
                message = (
                    f"Precondition failed: UID in precondition: {uid}, UID in object meta: {found['metadata']['uid']}"
                )
                raise Refusal(409, "Conflict", message, _details(key))
            self._record("DELETED", key, copy.deepcopy(found))
            for each, other in list(self.objects.items()):
                owners = [reference["uid"] for reference in other["metadata"].get("ownerReferences", [])]
                if found["metadata"]["uid"] in owners:
                    self.delete(each)
            return found

    def apply(self, key: Key, body: Object, manager: str, force: bool, schema: Object) -> tuple[Object, bool]:
        """Server-side apply; the object, and whether it is new.

        Lists are atomic but where the schema says they are maps, as in Kubernetes.
        """
        with self.changed:
            wanted = leaves(body, schema)
            live = self.objects.get(key)
            if live is None:
                made = self.create(key, body, manager)
                self.objects[key]["metadata"]["managedFields"] = [owner(manager, "Apply", body["apiVersion"], wanted)]
                return self.get(key) or made, True
            owners = {
                (entry["manager"], entry["operation"]): paths_of(entry["fieldsV1"])
                for entry in live["metadata"]["managedFields"]
            }
            mine = owners.pop((manager, "Apply"), set())
            conflicts = [
                (who, path)
                for who, paths in owners.items()
                for path in sorted(paths & set(wanted))
                if value_at(live, path) != wanted[path]
            ]
            if conflicts and not force:
                raise _conflict(key, conflicts, body["apiVersion"])
            for who, path in conflicts:
                owners[who].discard(path)
            others = set().union(*owners.values())
            found = copy.deepcopy(live)
            for path in mine - set(wanted) - others:
                remove(found, path)
            for path, value in wanted.items():
                put(found, path, value)
            found["metadata"]["managedFields"] = [
                owner(manager, "Apply", body["apiVersion"], wanted),
                *(owner(who, how, body["apiVersion"], paths) for (who, how), paths in owners.items() if paths),
            ]
            if without_managers(found) == without_managers(live) and mine == set(wanted):
                return copy.deepcopy(live), False
            if found.get("spec") != live.get("spec"):
                found["metadata"]["generation"] += 1
            return self._record("MODIFIED", key, found), False


def without_managers(found: Object) -> Object:
    return {**found, "metadata": {name: value for name, value in found["metadata"].items() if name != "managedFields"}}


def _full(plural: str) -> str:
    group, _, name = plural.rpartition("/")
    return f"{name}.{group}" if group else name


def _details(key: Key) -> Object:
    group, _, name = key[0].rpartition("/")
    return {"name": key[2], "kind": name, **({"group": group} if group else {})}


def missing(key: Key) -> Refusal:
    return Refusal(404, "NotFound", f'{_full(key[0])} "{key[2]}" not found', _details(key))


def _conflict(key: Key, conflicts: list[tuple[tuple[str, str], tuple[str, ...]]], version: str) -> Refusal:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{who}" using {version}', "field": dotted(path)}
        for (who, _), path in conflicts
    ]
    listed = ", ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    plural = "s" if len(causes) > 1 else ""
    return Refusal(
        409,
        "Conflict",
        f"Apply failed with {len(causes)} conflict{plural}: {listed}",
        {**_details(key), "causes": causes},
    )


def dotted(path: tuple[str, ...]) -> str:
    return "".join("." + part[2:] if part.startswith("f:") else f"[{part[2:]}]" for part in path)


# Fields, as managedFields has them: a path of f:name and k:{"key":"value"}.


def leaves(body: Object, schema: Object | None = None) -> dict[tuple[str, ...], Any]:
    """Path -> value of every field that a body sets, but those that only name the object."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(value: Any, path: tuple[str, ...], schema: Object) -> None:
        if isinstance(value, dict) and value:
            for name, each in value.items():
                inner = (schema.get("properties") or {}).get(name) or schema.get("additionalProperties")
                walk(each, (*path, f"f:{name}"), inner if isinstance(inner, dict) else {})
        elif isinstance(value, list) and schema.get("x-kubernetes-list-type") == "map":
            for each in value:
                keys = {name: each[name] for name in schema["x-kubernetes-list-map-keys"] if name in each}
                walk(each, (*path, "k:" + json.dumps(keys, sort_keys=True)), schema.get("items") or {})
        else:
            found[path] = value

    body = copy.deepcopy(body)
    for name in ("apiVersion", "kind", "status"):
        body.pop(name, None)
    for name in ("name", "namespace", *METADATA_OF_THE_SERVER):
        body.get("metadata", {}).pop(name, None)
    if not body.get("metadata"):
        body.pop("metadata", None)
    walk(body, (), schema or {})
    return found


def owner(manager: str, operation: str, version: str, paths: Any) -> Object:
    fields: Object = {}
    for path in paths:
        at = fields
        for part in path:
            at = at.setdefault(part, {})
    return {
        "manager": manager, "operation": operation, "apiVersion": version, "time": now(), "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }  # fmt: skip


def paths_of(fields: Object, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not fields:
        return {path}
    return set().union(*(paths_of(inner, (*path, part)) for part, inner in fields.items()))


def _step(at: Any, part: str, make: bool) -> Any:
    if part.startswith("k:"):
        keys = json.loads(part[2:])
        for each in at:
            if all(each.get(name) == value for name, value in keys.items()):
                return each
        if make:
            at.append(dict(keys))
            return at[-1]
        return None
    return at.get(part[2:]) if isinstance(at, dict) else None


def value_at(found: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if found is None:
            return None
        found = _step(found, part, make=False)
    return found


def put(found: Any, path: tuple[str, ...], value: Any) -> None:
    at = found
    for part, after in itertools.pairwise(path):
        if part.startswith("f:") and not isinstance(at.get(part[2:]), dict | list):
            at[part[2:]] = [] if after.startswith("k:") else {}
        at = _step(at, part, make=True)
    at[path[-1][2:]] = copy.deepcopy(value)


def remove(found: Any, path: tuple[str, ...]) -> None:
    trail = [found]
    for part in path[:-1]:
        inner = _step(trail[-1], part, make=False)
        if inner is None:
            return
        trail.append(inner)
    trail[-1].pop(path[-1][2:], None)
    for part, outer, inner in reversed(list(zip(path[:-1], trail, trail[1:], strict=False))):
        if inner:
            break
        if isinstance(outer, dict):
            outer.pop(part[2:], None)
