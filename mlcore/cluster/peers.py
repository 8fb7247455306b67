"""The other members of a cluster: whether they can be reached, and waiting for them with a bound. No TensorFlow.

A pod's name resolves only once the pod is ready, its port opens when TensorFlow's server is up, and a stopped process
still accepts connections in the kernel. So a member counts as there only when its server *answers*: a gRPC server
greets each HTTP/2 client with a SETTINGS frame.
"""

import concurrent.futures
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Sequence

from mlcore.cluster.config import Member
from mlcore.runtime.errors import RestartError
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 3.0
_REPORT_INTERVAL_S = 10.0
_POLL_INTERVAL_S = 0.5
# Client connection preface of HTTP/2 (RFC 9113, 3.4) and an empty SETTINGS frame: length 0, type 4, no flags, stream 0.
_SETTINGS_TYPE = 4
_SETTINGS = bytes([0, 0, 0, _SETTINGS_TYPE, 0, 0, 0, 0, 0])
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS

NO_NAME = "its name does not resolve"
REFUSED = "its port is closed"
UNREACHABLE = "no connection"
SILENT = "it does not answer"


def trouble_with(member: Member, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Why a member's server cannot be used right now; None when it answers."""
    try:
        with socket.create_connection((member.host, member.port), timeout=timeout_s) as connection:
            connection.sendall(_GREETING)
            frame = connection.recv(9)
    except socket.gaierror:
        return NO_NAME
    except ConnectionRefusedError:
        return REFUSED
    except TimeoutError:
        return SILENT
    except OSError as error:
        # A closed connection in mid-greeting is a server that is ending.
        return SILENT if error.errno in (errno.ECONNRESET, errno.EPIPE) else UNREACHABLE
    return None if len(frame) >= 4 and frame[3] == _SETTINGS_TYPE else SILENT


class Presence:
    """Answers in a member's place while it has no server of TensorFlow's."""

    def __init__(self, me: Member) -> None:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._socket = socket.create_server(
            ("", me.port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=64
        )
        threading.Thread(target=self._answer, name="presence", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(0.5)
                connection.sendall(_SETTINGS)
                connection.recv(len(_GREETING))

    def close(self) -> None:
        """Free the port."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would keep the port otherwise
        self._socket.close()


def troubles_with(members: Sequence[Member], timeout_s: float = PROBE_TIMEOUT_S) -> dict[Member, str]:
    """The members that do not answer, and why; all are asked at once."""
    if not members:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(len(members), 32)) as pool:
        answers = pool.map(lambda member: trouble_with(member, timeout_s), members)
        return {member: trouble for member, trouble in zip(members, answers, strict=True) if trouble}


def describe(troubles: dict[Member, str]) -> str:
    """`ps 0 (host:2222): its port is closed; worker 1 (…): …`."""
    return "; ".join(f"{member.name}: {trouble}" for member, trouble in troubles.items())


def wait_for_peers(members: Sequence[Member], timeout_s: float, stop: StopFlag | None = None) -> None:
    """Wait until all of some members answer; who is missing is said every ten seconds.

    Raises:
        RestartError: Somebody is still missing after `timeout_s` seconds.
        Stopped: `stop` was set.
    """
    start = reported = time.monotonic()
    missing: Sequence[Member] = members
    while True:
        troubles = troubles_with(missing)
        if not troubles:
            return
        missing = list(troubles)
        now = time.monotonic()
        if now - start >= timeout_s:
            raise RestartError(f"after {timeout_s:.0f} s the cluster is not complete: {describe(troubles)}")
        if now - reported >= _REPORT_INTERVAL_S:
            reported = now
            log.info("waiting for %d of %d members: %s", len(troubles), len(members), describe(troubles))
        _pause(_POLL_INTERVAL_S, stop)


def wait_for_own_port(me: Member, timeout_s: float, stop: StopFlag | None = None) -> None:
    """Wait until this member's port is free: a predecessor of the same name may still be ending.

    Raises:
        RestartError: It is still taken after `timeout_s` seconds.
        Stopped: `stop` was set.
    """
    start = reported = time.monotonic()
    while not _is_free(me.port):
        now = time.monotonic()
        if now - start >= timeout_s:
            raise RestartError(f"{me.name}: port {me.port} is still taken after {timeout_s:.0f} s")
        if now - reported >= _REPORT_INTERVAL_S:
            reported = now
            log.info("%s: waiting for port %d, which another process still holds", me.name, me.port)
        _pause(_POLL_INTERVAL_S, stop)


def _is_free(port: int) -> bool:
    """Whether a server could listen on a port of any interface, as TensorFlow's does."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a machine without IPv6
                raise
    return True


def _pause(seconds: float, stop: StopFlag | None) -> None:
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise stop.error()
