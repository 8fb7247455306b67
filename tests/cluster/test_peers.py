"""Whether other members are there: real servers and sockets on loopback."""

import functools
import logging
import socket
import threading
import time
from concurrent import futures

import grpc
import pytest
from processes import free_ports

from mlcore.cluster import guard as guards
from mlcore.cluster import peers
from mlcore.cluster.config import Member
from mlcore.cluster.guard import PeerGuard
from mlcore.cluster.peers import describe, trouble_with, troubles_with, wait_for_own_port, wait_for_peers
from mlcore.runtime.errors import RestartError, Stopped
from mlcore.runtime.signals import StopFlag


def member(port, role="ps", index=0):
    return Member(role, index, f"127.0.0.1:{port}")


@pytest.fixture
def server():
    """A gRPC server, as TensorFlow's is."""
    running = grpc.server(futures.ThreadPoolExecutor(1))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield port
    running.stop(None)


@pytest.fixture
def stopped_server():
    """Accepts in the kernel and says nothing, as a process after SIGSTOP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_server_that_runs_answers_at_once(server):
    started = time.monotonic()
    assert trouble_with(member(server)) is None
    assert time.monotonic() - started < 2


def test_each_trouble_has_its_name(server, stopped_server):
    (closed,) = free_ports(1)
    nameless = Member("ps", 1, "no-such-host.invalid:2222")
    asked = [member(server), member(closed), member(stopped_server), nameless]
    assert troubles_with(asked, 0.3) == {
        member(closed): peers.REFUSED,
        member(stopped_server): peers.SILENT,
        nameless: peers.NO_NAME,
    }
    assert describe({nameless: peers.NO_NAME}) == "ps 1 (no-such-host.invalid:2222): its name does not resolve"


@pytest.mark.slow
def test_waiting_names_who_is_missing_and_has_a_bound(server, caplog, monkeypatch):
    monkeypatch.setattr(peers, "_REPORT_INTERVAL_S", 0.5)
    (closed,) = free_ports(1)
    caplog.set_level(logging.INFO, "mlcore")
    with pytest.raises(RestartError, match=rf"not complete: worker 1 \(127.0.0.1:{closed}\): its port is closed"):
        wait_for_peers([member(server), member(closed, "worker", 1)], 1.5)
    assert f"waiting for 1 of 2 members: worker 1 (127.0.0.1:{closed}): its port is closed" in caplog.text


def test_waiting_ends_when_the_last_one_comes():
    (port,) = free_ports(1)
    late = grpc.server(futures.ThreadPoolExecutor(1))
    timer = threading.Timer(0.7, lambda: (late.add_insecure_port(f"127.0.0.1:{port}"), late.start()))
    timer.start()
    wait_for_peers([member(port)], 20)
    timer.join()
    late.stop(None)


def test_waiting_ends_on_sigterm():
    (closed,) = free_ports(1)
    stop = StopFlag()
    threading.Timer(0.2, stop.set, args=[15]).start()
    with pytest.raises(Stopped):
        wait_for_peers([member(closed)], 20, stop)


@pytest.mark.slow
def test_own_port_is_waited_for_and_taken_for_good_means_start_again():
    with socket.create_server(("0.0.0.0", 0)) as predecessor:
        port = predecessor.getsockname()[1]
        with pytest.raises(RestartError, match=f"port {port} is still taken after 1 s") as caught:
            wait_for_own_port(member(port), 1)
        assert caught.value.exit_code == 138
        threading.Timer(0.5, predecessor.close).start()
        wait_for_own_port(member(port), 20)


def test_presence_answers_until_it_is_closed_and_then_frees_the_port():
    (port,) = free_ports(1)
    presence = peers.Presence(member(port))
    for _ in range(20):
        assert trouble_with(member(port)) is None
    presence.close()
    wait_for_own_port(member(port), 0)
    assert trouble_with(member(port)) == peers.REFUSED


@pytest.mark.slow
def test_guard_notices_a_lost_parameter_server_and_a_silent_worker(server, stopped_server, monkeypatch):
    monkeypatch.setattr(guards, "troubles_with", functools.partial(troubles_with, timeout_s=0.2))
    monkeypatch.setattr(guards, "_POLL_INTERVAL_S", 0.2)
    (closed,) = free_ports(1)
    worker = member(stopped_server, "worker", 3)
    guard = PeerGuard([member(server)], [worker])
    guard.start()
    end = time.monotonic() + 15
    while not guard.missing_for(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert guard.trouble(worker) == peers.SILENT
    guard.check()
    guard.stop()
    lost = PeerGuard([member(closed)], [])
    lost.start()
    while time.monotonic() < end + 15:
        try:
            lost.check()
        except RestartError as error:
            assert str(error).startswith(f"ps 0 (127.0.0.1:{closed}) is lost: its port is closed")
            break
        time.sleep(0.05)
    else:
        raise AssertionError("not noticed")
    lost.stop()
