"""Protobuf messages from a short table, in a descriptor pool of their own.

TensorFlow, tensorflow-serving-api and kserve register the same messages in the default pool of the process, and the two
must not meet. On the wire a message has no name and an enumeration is a number, so the tables here give what counts:
the number, name and type of each field.

    TensorShapeProto
      2 repeated TensorShapeProto.Dim dim
      3 bool unknown_rank
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_FIELD, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}
_LINE = re.compile(r"(?P<number>\d+) (?P<label>repeated |oneof )?(?P<type>[\w.]+|map<\w+, ?[\w.]+>) (?P<name>\w+)")


def build(name: str, table: str) -> dict[str, Any]:
    """Name -> class of each message of a table.

    Args:
        name: Name of the package; any that is not taken.
        table: A message's name at the start of a line; below it, indented, its fields as number, type (a scalar of
            protobuf, a message of the table, or map<key, value>) and name. `oneof` marks the fields of the one oneof.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"mlcore/{name}.proto", package=f"mlcore.{name}", syntax="proto3")
    prefix = f".{file.package}."
    names: list[str] = []
    message: Any = None
    for line in filter(None, (line.rstrip() for line in table.splitlines())):
        if not line.startswith(" "):
            names.append(line)
            message = file.message_type.add(name=_flat(line))
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{name}: {line!r}")
        field = message.field.add(name=match["name"], number=int(match["number"]), label=_FIELD.LABEL_OPTIONAL)
        kind = match["type"]
        if kind.startswith("map<"):
            key, _, value = kind[4:-1].partition(",")
            entry = message.nested_type.add(name=_entry(match["name"]))
            entry.options.map_entry = True
            for number, part in ((1, key), (2, value.strip())):
                _set_type(entry.field.add(name=("key", "value")[number - 1], number=number,
                                          label=_FIELD.LABEL_OPTIONAL), part, prefix)  # fmt: skip
            field.label, field.type = _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE
            field.type_name = f"{prefix}{message.name}.{entry.name}"
            continue
        _set_type(field, kind, prefix)
        if match["label"] == "repeated ":
            field.label = _FIELD.LABEL_REPEATED
        elif match["label"] == "oneof ":
            if not message.oneof_decl:
                message.oneof_decl.add(name="choice")
            field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        each: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{_flat(each)}"))
        for each in names
    }


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _entry(field: str) -> str:
    """The name that protobuf wants for the entries of a map."""
    return "".join(part[:1].upper() + part[1:] for part in field.split("_")) + "Entry"


def _set_type(field: Any, kind: str, prefix: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, prefix + _flat(kind)
