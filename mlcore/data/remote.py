"""A file that is to be fetched: its name, addresses, size and digest, each checked before any transfer."""

import hashlib
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from mlcore.runtime.errors import UsageError
from mlcore.runtime.outputs import SUCCESS

SCHEMES = ("http", "https", "file")
_HEX_DIGITS = {"sha256": 64, "md5": 32}
# `.name.part.json` must fit into the 255 bytes that file systems allow.
_MAX_NAME_BYTES = 230


@dataclass(frozen=True)
class Digest:
    """A published checksum, such as `sha256:67195c5e...`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """From 64 hexadecimal digits (SHA-256), or with a prefix `sha256:` or `md5:`.

        Raises:
            UsageError: It is neither.
        """
        algorithm, colon, digits = text.strip().lower().rpartition(":")
        algorithm = algorithm if colon else "sha256"
        if algorithm not in _HEX_DIGITS or not re.fullmatch(rf"[0-9a-f]{{{_HEX_DIGITS[algorithm]}}}", digits):
            raise UsageError(f"--sha256={text}: expected 64 hexadecimal digits, sha256:<64 digits> or md5:<32 digits>")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def matches(self, path: Path) -> bool:
        """Whether a file's bytes have this digest."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest() == self.hex


@dataclass(frozen=True)
class RemoteFile:
    """One file with the addresses where it can be had, the preferred first.

    Attributes:
        name: File name in the output directory.
        urls: http, https or file addresses of the same bytes.
        size: Bytes, where it is known beforehand.
        digest: Published checksum, where there is one.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    digest: Digest | None = None


def shown(url: str) -> str:
    """An address without what may be secret in it (user, password, query), for messages and records."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _without_secrets(url: str) -> str:
    """The same for what cannot be taken apart as an address."""
    return re.sub(r"^([^/]*//)?.*@", r"\1", re.split(r"[?#]", url, maxsplit=1)[0])


def check_url(url: str, flag: str = "--url") -> None:
    """Refuse an address that cannot be fetched.

    Raises:
        UsageError: It is no http, https or file address, or holds a user name.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{flag}={_without_secrets(url)}: not an address") from error
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise UsageError(f"{flag}={shown(url)!r}: spaces and control characters must be percent-encoded")
    if parts.scheme not in SCHEMES:
        hint = f"; for a local file write file://{url}" if url.startswith("/") else ""
        raise UsageError(f"{flag}={shown(url)}: expected an http://, https:// or file:// address{hint}")
    if parts.scheme == "file" and "%00" in parts.path:
        raise UsageError(f"{flag}={shown(url)}: no path has a null character")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"{flag}={shown(url)}: a file address has no host; write file:///{parts.netloc}{parts.path}"
            )
    elif not parts.hostname:
        raise UsageError(f"{flag}={shown(url)}: the host is missing")
    if "@" in parts.netloc:
        raise UsageError(f"{flag}={shown(url)}: user names and passwords in addresses are not supported")


def check_name(name: str, url: str) -> None:
    """Refuse a file name that could leave the output directory or hide in it.

    Raises:
        UsageError: It is not safe.
    """
    if not name:
        raise UsageError(f"--url={url}: the address ends with no file name")
    # A leading dot would hide the file among our own partial files.
    if name.startswith(".") or name == SUCCESS or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise UsageError(f"--url={url}: {name!r} cannot be used as a file name")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise UsageError(f"--url={url}: the file name is longer than {_MAX_NAME_BYTES} bytes")


def name_from_url(url: str) -> str:
    """The file name in an address: the last part of its path, decoded.

    What a server says (Content-Disposition, the target of a redirect) never names a file.

    Raises:
        UsageError: The address has none, or one that is not safe as a file name.
    """
    check_url(url)
    last = urllib.parse.urlsplit(url).path.rpartition("/")[2]
    try:
        name = urllib.parse.unquote(last, errors="strict")
    except UnicodeDecodeError as error:
        raise UsageError(f"--url={shown(url)}: the file name is not UTF-8") from error
    check_name(name, shown(url))
    return name


def local_path(url: str) -> Path:
    """The path that a file:// address means."""
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
