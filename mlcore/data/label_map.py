"""Label maps: which class each number means, in the text form of the Object Detection API's StringIntLabelMap.

    item {
      id: 1
      name: 'Abyssinian'
    }

Ids start at 1, since 0 is the background. Names are case-sensitive.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import atomic_file

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*|[,;])|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<number>-?\d+)|(?P<word>\w+)|(?P<mark>[{}<>:])"""
)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(.))", re.S)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_MAX_ID = 2**31 - 1


def build_label_map(names: Iterable[str]) -> dict[int, str]:
    """Ids from 1 for these classes, sorted without regard to case (as TensorFlow's own pets label map is)."""
    ordered = sorted(set(names), key=lambda name: (name.casefold(), name))
    return dict(enumerate(ordered, start=1))


def format_label_map(label_map: Mapping[int, str]) -> str:
    """The text of a label map."""
    items = []
    for number, name in sorted(label_map.items()):
        quoted = name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        items.append(f"item {{\n  id: {number}\n  name: '{quoted}'\n}}\n")
    return "\n".join(items)


def write_label_map(path: Path | str, label_map: Mapping[int, str]) -> None:
    """Write a label map to `path`, whole or not at all."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(format_label_map(label_map), encoding="utf-8")


def read_label_map(path: Path | str) -> dict[int, str]:
    """The classes of a label map file by their ids, in the order of the ids.

    `name` is what annotations use; `display_name` and other fields may be there and are not needed. An item of id 0
    (the background) is left out.

    Raises:
        UsageError: There is no such file.
        DataError: The file is no label map, or an id or a name occurs twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a label map (.pbtxt)") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; expected a label map (.pbtxt)") from error
    label_map: dict[int, str] = {}
    for line, number, name in _items(path, text):
        if number is None or name is None:
            raise DataError(f"{path}, line {line}: an item without {'id' if number is None else 'name'}")
        if number < 0:
            raise DataError(f"{path}, line {line}: id {number}; expected 1 or more")
        if number == 0:
            continue
        if number in label_map:
            raise DataError(f"{path}, line {line}: id {number} occurs twice ({label_map[number]!r} and {name!r})")
        label_map[number] = name
    if not label_map:
        raise DataError(f"{path}: no item in it; expected lines such as item {{ id: 1 name: 'cat' }}")
    for name, count in Counter(label_map.values()).items():
        if count > 1:
            raise DataError(f"{path}: the name {name!r} has {count} ids; expected one")
    return dict(sorted(label_map.items()))


def _items(path: Path, text: str) -> Iterable[tuple[int, int | None, str | None]]:
    """(line, id, name) of each item of the text format of protobuf, as far as label maps use it."""
    position, line = 0, 1
    tokens: list[tuple[int, str, str]] = []
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise DataError(f"{path}, line {line}: {text[position : position + 20]!r} is not of a label map")
        if match.lastgroup != "skip":
            tokens.append((line, str(match.lastgroup), match.group()))
        line += match.group().count("\n")
        position = match.end()
    index, depth = 0, 0
    start, number, name = 0, None, None
    while index < len(tokens):
        line, kind, value = tokens[index]
        following = tokens[index + 1 : index + 3]
        if depth == 0:
            opened = [token[2] for token in following[:1]] + [token[2] for token in following[1:2]]
            brace = 1 if opened[:1] in (["{"], ["<"]) else 2 if opened in ([":", "{"], [":", "<"]) else 0
            if value != "item" or not brace:
                raise DataError(f"{path}, line {line}: {value!r}; expected item {{ id: ... name: ... }}")
            depth, start, number, name = 1, line, None, None
            index += 1 + brace
        elif value in "}>" and kind == "mark":
            depth -= 1
            index += 1
            if depth == 0:
                yield start, number, name
        elif kind == "mark":
            depth += value in "{<"
            index += 1
        elif depth == 1 and kind == "word" and value in ("id", "name"):
            wanted = "number" if value == "id" else "text"
            if len(following) < 2 or following[0][2] != ":" or following[1][1] != wanted:
                raise DataError(f"{path}, line {line}: expected {value}: and a {wanted}")
            index += 3
            if value == "id":
                number = int(following[1][2])
                if number > _MAX_ID:
                    raise DataError(f"{path}, line {line}: id {following[1][2][:30]}; expected at most {_MAX_ID:,}")
                continue
            quoted = [following[1][2]]
            while index < len(tokens) and tokens[index][1] == "text":  # texts side by side are one
                quoted.append(tokens[index][2])
                index += 1
            try:
                name = b"".join(map(_unquoted, quoted)).decode()
            except ValueError as error:
                raise DataError(f"{path}, line {line}: {' '.join(quoted)} is no text in UTF-8") from error
        else:
            index += 1
    if depth:
        raise DataError(f"{path}: ends within the item of line {start}")


def _unquoted(text: str) -> bytes:
    """The bytes that a quoted text of protobuf's text format means.

    https://protobuf.dev/reference/protobuf/textformat-spec/#string-literals

    Raises:
        ValueError: An escape that means no byte and no character.
    """
    parts, end = [], 0
    body = text[1:-1]
    for match in _ESCAPE.finditer(body):
        parts.append(body[end : match.start()].encode())
        end = match.end()
        octal, hexadecimal, code, other = match.groups()
        if octal or hexadecimal:
            parts.append(bytes([int(octal, 8) if octal else int(hexadecimal, 16)]))
        else:
            parts.append((chr(int(code[1:], 16)) if code else _ESCAPES.get(other, other)).encode())
    parts.append(body[end:].encode())
    return b"".join(parts)
