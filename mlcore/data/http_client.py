"""Opening an address for reading: time-outs, proxies, redirects, verified TLS, and errors sorted by what to do next.

On the standard library's client: it follows the proxy variables of the environment and hands out a response that reads
straight into a buffer, which costs less CPU time than the clients that allocate a block for each read.
"""

import contextlib
import email.utils
import http.client
import io
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from typing import IO, Any

from mlcore import __version__
from mlcore.data.remote import local_path, shown
from mlcore.runtime.errors import MlcoreError, TransientError, UsageError
from mlcore.runtime.progress import format_duration

MAX_REDIRECTS = 10
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
# On the own machine or its neighbour (round trip below this) a window of 2 MiB is enough for any link, and the bytes
# are still in the processor's cache when they are read; the kernel would let the buffer grow to many megabytes.
_NEAR_MICROSECONDS = 300
_NEAR_BUFFER_BYTES = 1 << 20  # which the kernel doubles
_FILL_S = 1.0
_TCP_INFO_RTT = slice(68, 72)  # tcpi_rtt in struct tcp_info of linux/tcp.h


class SourceError(Exception):
    """An address cannot give the file now.

    Attributes:
        outcome: The error that ends the step if no address can give the file; TransientError where trying again may
            help.
        retry_after_s: Wait that the server asks for, in seconds.
    """

    def __init__(self, message: str, outcome: type[MlcoreError], *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after_s = retry_after_s


class Reply:
    """An answer whose body has not been read.

    Attributes:
        status: 200, 206 (a part), 304 (not modified) or 416 (no such part).
        body: The bytes, read with `readinto`.
        length: Bytes of the body, None where the server does not say.
        start: Where the body starts in the file.
        total: Bytes of the whole file, None where the server does not say.
        encoding: Content-Encoding, empty where there is none.
        etag: Strong or weak ETag, empty where there is none.
        last_modified: Last-Modified, empty where there is none.
    """

    def __init__(self, status: int, body: http.client.HTTPResponse | io.RawIOBase, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self._broken: SourceError | None = None
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdecimal() else None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self.length = None
        self.start, self.total = 0, self.length
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("content-range", "").strip())
        if status in (206, 416):
            self.start = int(found[1]) if found and found[1] else -1
            self.total = int(found[2]) if found and found[2].isdigit() else None
            if status == 206 and self.total is None and self.length is not None:
                self.total = self.start + self.length
        self.encoding = headers.get("content-encoding", "").strip().lower()
        self.etag = headers.get("etag", "")
        self.last_modified = headers.get("last-modified", "")

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer with the next bytes, or with those that came within a second; 0 at the end.

        So what came over a slow connection is soon in the caller's hands, as is what came before one broke.

        Raises:
            SourceError: The connection broke or stalled, and all that came before was returned.
        """
        filled = 0
        end = time.monotonic() + _FILL_S
        try:
            while filled < len(buffer) and self._broken is None:
                count = _read_some(self.body, buffer[filled:])
                filled += count
                if count == 0 or time.monotonic() > end:
                    break
        except (OSError, http.client.HTTPException) as error:
            self._broken = _source_error(error)
        if self._broken is not None and not filled:
            raise self._broken
        return filled

    def close(self) -> None:
        """Give the connection up."""
        self.body.close()


def _read_some(body: http.client.HTTPResponse | io.RawIOBase, buffer: memoryview) -> int:
    """What one read gives; `readinto` of a response would go on until the buffer is full, and lose all on an error."""
    if not isinstance(body, http.client.HTTPResponse):
        return body.readinto(buffer) or 0
    if body.chunked:
        return body.readinto1(buffer)
    # Straight into the buffer: the response's own readinto1 makes a block of bytes first, and copies it.
    if body.fp is None:
        return 0
    if body.length is None:
        return body.fp.readinto1(buffer)
    count = body.fp.readinto1(buffer[: body.length])
    body.length -= count
    return count


class Client:
    """Opens addresses; safe to use from several threads.

    Args:
        connect_timeout_s: Longest wait for a connection, TLS included.
        stall_timeout_s: Longest time without a byte.
    """

    def __init__(self, *, connect_timeout_s: float, stall_timeout_s: float) -> None:
        self.connect_timeout_s = connect_timeout_s
        self.stall_timeout_s = stall_timeout_s
        self._context: ssl.SSLContext | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._aborted = False

    def open(self, url: str, headers: Mapping[str, str], *, may_downgrade: bool = False) -> Reply:
        """The reply of an http, https or file address.

        Args:
            url: Address.
            headers: Range, If-Range and the like.
            may_downgrade: Whether an https address may redirect to http (right where a digest is checked).

        Raises:
            SourceError: No usable answer.
        """
        if urllib.parse.urlsplit(url).scheme == "file":
            return _open_local(url)
        url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # letters beyond ASCII, as browsers do
        request = urllib.request.Request(url, headers={
            "User-Agent": f"mlcore/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity", **headers,
        })  # fmt: skip
        opener = urllib.request.build_opener(
            _Redirects(may_downgrade), _HTTPHandler(self._plain), _HTTPSHandler(self._tls)
        )  # fmt: skip
        try:
            response = opener.open(request, timeout=self.connect_timeout_s)
        except urllib.error.HTTPError as error:
            if error.code in (304, 416):
                error.close()
                return Reply(error.code, io.FileIO(os.devnull), _lower(error.headers))
            error.close()
            wait = _retry_after(error.headers.get("Retry-After"))
            asked = f" and asks to wait {format_duration(wait)}" if wait else ""
            raise SourceError(
                f"the server answered {error.code} {error.reason}".strip() + asked,
                TransientError if error.code in _TRANSIENT_STATUSES else UsageError,
                retry_after_s=wait,
            ) from error
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise _source_error(error, _proxy_of(request)) from error
        except ValueError as error:  # a redirect to what is no address
            raise SourceError(str(error), UsageError) from error
        if response.status not in (200, 206):
            response.close()
            raise SourceError(f"the server answered {response.status}, expected 200 or 206", UsageError)
        return Reply(response.status, response, _lower(response.headers))

    def abort(self) -> None:
        """Break every connection, from any thread, so that reads that wait end at once."""
        with self._lock:
            self._aborted = True
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    # Not the method of an SSL socket: the TLS layer of another thread must not be entered.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _plain(self, host: str, **arguments: Any) -> http.client.HTTPConnection:
        return _Connection(self._connected, host, **arguments)

    def _tls(self, host: str, **arguments: Any) -> http.client.HTTPSConnection:
        if self._context is None:
            self._context = ssl.create_default_context()
        arguments["context"] = self._context
        return _TLSConnection(self._connected, host, **arguments)

    def _connected(self, connection: socket.socket) -> None:
        with self._lock:
            if self._aborted:
                raise ConnectionAbortedError("the download was stopped")
            self._sockets = {old for old in self._sockets if old.fileno() >= 0} | {connection}
        connection.settimeout(self.stall_timeout_s)
        with contextlib.suppress(OSError):  # the kernel's own choice is right too, only not always the fastest
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            if int.from_bytes(info[_TCP_INFO_RTT], "little") < _NEAR_MICROSECONDS:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NEAR_BUFFER_BYTES)


class _Connection(http.client.HTTPConnection):
    """Tells when it is connected, for the stall time-out takes the place of the connect time-out from then on."""

    def __init__(self, connected: Callable[[socket.socket], None], host: str, **arguments: Any) -> None:
        super().__init__(host, **arguments)
        self._on_connected = connected

    def connect(self) -> None:
        super().connect()
        self._on_connected(self.sock)


class _TLSConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    def __init__(self, connected: Callable[[socket.socket], None], host: str, **arguments: Any) -> None:
        super().__init__(host, **arguments)
        self._on_connected = connected

    def connect(self) -> None:
        super().connect()
        self._on_connected(self.sock)


class _HTTPHandler(urllib.request.HTTPHandler):
    """Opens http addresses over our connections."""

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https addresses over our connections."""

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Bounded redirects, to http and https only."""

    max_redirections = MAX_REDIRECTS

    def __init__(self, may_downgrade: bool) -> None:
        self._may_downgrade = may_downgrade

    def redirect_request(  # noqa: PLR0917
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http:", "https:")):
            raise ValueError(f"the server redirects to {shown(newurl)}, which is no http or https address")
        if req.full_url.startswith("https:") and newurl.startswith("http:") and not self._may_downgrade:
            raise ValueError(f"the server redirects from https to {shown(newurl)}; give --sha256 to allow that")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_local(url: str) -> Reply:
    path = local_path(url)
    try:
        if path.exists() and not path.is_file():
            raise SourceError("is no file", UsageError)
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})", UsageError) from error
    status = os.fstat(file.fileno())
    headers = {"content-length": str(status.st_size), "etag": f'"{status.st_size}-{status.st_mtime_ns}"'}
    return Reply(200, file, headers)


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _proxy_of(request: urllib.request.Request) -> str:
    """Host and port of the proxy that a request went through; empty where there was none."""
    return request.host if request.host != urllib.parse.urlsplit(request.full_url).netloc else ""


def _source_error(error: Exception, proxy: str = "") -> SourceError:
    """What a broken connection means for the next try."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SourceError(
            f"its certificate is not trusted ({reason.verify_message}); for an authority of your own set SSL_CERT_FILE",
            UsageError,
        )
    via = f" (through the proxy {proxy} of the environment)" if proxy else ""
    if isinstance(reason, TimeoutError):
        return SourceError(f"timed out{via}", TransientError)
    if isinstance(reason, socket.gaierror):
        outcome = UsageError if reason.errno == socket.EAI_NONAME else TransientError
        whose = f"the name of the proxy {proxy}" if proxy else "the host name"
        return SourceError(f"{whose} is not known ({reason.strerror})", outcome)
    if isinstance(reason, http.client.InvalidURL):
        return SourceError(f"no address: {reason}", UsageError)
    if isinstance(reason, http.client.IncompleteRead):
        return SourceError("the connection broke", TransientError)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return SourceError(text[:1].lower() + text[1:] + via, TransientError)
