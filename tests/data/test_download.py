"""`download`, against real servers that cut, stall, lie and refuse, and with real kills."""

import email.utils
import hashlib
import importlib.util
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
import typing
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.data.datasets import DATASETS, DatasetName
from mlcore.data.download import download
from mlcore.data.remote import name_from_url
from mlcore.data.space import DiskFull, Space
from mlcore.runtime.errors import DataError, TransientError, UsageError


def _server_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("file_server", Path(__file__).with_name("file_server.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["file_server"] = module
    spec.loader.exec_module(module)
    return module


_module = _server_module()
Behaviour, serving = _module.Behaviour, _module.serving

DATA = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = {"backoff_s": 0.01, "stall_timeout_s": 5.0}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".download.json")


def test_several_files_arrive_with_their_record(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        done = download(url=(f"{server.url}/a.bin", f"{server.url}/d/b%20c.bin?x=1"), sha256=(SHA256, "-"),
                        output_dir=tmp_path)  # fmt: skip
    assert (done.files, done.downloaded, done.bytes) == (2, 2, 2_000_000)
    assert names(tmp_path) == ["_SUCCESS.json", "a.bin", "b c.bin"]
    assert (tmp_path / "b c.bin").read_bytes() == DATA
    record = json.loads((tmp_path / "_SUCCESS.json").read_text())
    assert record["inputs"] == {"a.bin": f"sha256:{SHA256}", "b c.bin": f"sha256:{SHA256}"}
    assert "x=1" not in json.dumps(record)


@pytest.mark.parametrize("ranges", [True, False], ids=["range", "no-range"])
def test_a_cut_is_resumed_or_started_again(tmp_path: Path, ranges: bool) -> None:
    with serving(Behaviour(DATA, ranges=ranges, cut_after=[300_000, 500_000])) as server:
        download(url=(f"{server.url}/a",), sha256=(SHA256,), output_dir=tmp_path, **QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    asked = [request.get("range") for request in server.requests]
    assert asked == ([None, "bytes=300000-", "bytes=800000-"] if ranges else [None, "bytes=300000-", "bytes=500000-"])
    assert all("if-range" in request for request in server.requests[1:])


def test_a_file_that_changes_between_the_parts_is_not_mixed(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, cut_after=[300_000])) as server:
        with pytest.raises(TransientError):
            download(url=(f"{server.url}/a",), output_dir=tmp_path, retries=0)
        server.data = DATA[::-1]
        download(url=(f"{server.url}/a",), output_dir=tmp_path)
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


def test_without_etag_and_digest_nothing_is_resumed(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, etag="", cut_after=[300_000])) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert [request.get("range") for request in server.requests] == [None, None]
    assert (tmp_path / "a").read_bytes() == DATA


def test_parts_that_do_not_fit_are_fetched_again(tmp_path: Path) -> None:
    with serving(Behaviour(DATA[::-1], etag="", cut_after=[300_000])) as server:
        with pytest.raises(TransientError):
            download(url=(f"{server.url}/a",), sha256=(SHA256,), output_dir=tmp_path, retries=0)
        server.data = DATA
        download(url=(f"{server.url}/a",), sha256=(SHA256,), output_dir=tmp_path, **QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert names(tmp_path) == ["_SUCCESS.json", "a"]


@pytest.mark.parametrize("etag", ["auto", ""], ids=["etag", "no-etag"])
def test_a_reply_in_chunks_arrives_and_a_cut_in_it_is_noticed(tmp_path: Path, etag: str) -> None:
    with serving(Behaviour(DATA, chunked=True, etag=etag, cut_after=[300_000])) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_stall_is_cut_and_resumed(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, stall_s=3)) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, backoff_s=0.01, stall_timeout_s=0.3)
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(server.requests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(tmp_path: Path, form: str) -> None:
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    with serving(Behaviour(DATA, statuses=[(429, {"Retry-After": wait}), (503, {})])) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert server.times[1] - server.times[0] >= 0.9
    assert server.times[2] - server.times[1] < 0.5


def test_errors_of_the_server_are_tried_again_and_then_given_up(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, statuses=[(503, {})] * 9)) as server:
        with pytest.raises(TransientError, match="503"):
            download(url=(f"{server.url}/a",), output_dir=tmp_path, retries=2, backoff_s=0.01)
        assert len(server.requests) == 3
    assert names(tmp_path) == []


def test_a_missing_file_is_not_tried_again(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, statuses=[(404, {})])) as server:
        with pytest.raises(UsageError, match="404"):
            download(url=(f"{server.url}/a",), output_dir=tmp_path)
        assert len(server.requests) == 1


def test_a_refused_connection_is_transient(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        pass
    with pytest.raises(TransientError, match="refused"):
        download(url=(f"{server.url}/a",), output_dir=tmp_path, retries=1, backoff_s=0.01)


def test_a_wrong_digest_is_set_aside(tmp_path: Path) -> None:
    wanted = "0" * 64
    with serving(Behaviour(DATA)) as server, pytest.raises(DataError, match=f"{SHA256}, expected {wanted}.*set aside"):
        download(url=(f"{server.url}/a",), sha256=(wanted,), output_dir=tmp_path)
    assert names(tmp_path) == [".a.bad"]
    assert (tmp_path / ".a.bad").read_bytes() == DATA


def test_mirrors_take_turns(tmp_path: Path) -> None:
    with serving(Behaviour(DATA[:999] + DATA)) as wrong, serving(Behaviour(b"", statuses=[(404, {})])) as missing, \
            serving(Behaviour(DATA)) as right:  # fmt: skip
        download(url=(f"{right.url}/a",), mirror=(missing.url, f"{wrong.url}/"), sha256=(SHA256,), output_dir=tmp_path)
        assert len(missing.requests) == len(wrong.requests) == 1
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_mirror_goes_on_where_the_first_was_cut(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, cut_after=[400_000])) as one, serving(Behaviour(DATA, etag='"other"')) as two:
        download(url=(f"{two.url}/a",), mirror=(one.url,), sha256=(SHA256,), output_dir=tmp_path, backoff_s=5)
        assert two.requests[0]["range"] == "bytes=400000-"
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_known_data_set_is_checked_by_the_table(shared_data: Path, tmp_path: Path) -> None:
    base = (shared_data / "mnist").as_uri()
    done = download(dataset="mnist", mirror=(base,), output_dir=tmp_path)
    assert (done.files, done.bytes) == (4, sum(file.size or 0 for file in DATASETS["mnist"]))
    assert download(dataset="mnist", mirror=(base,), output_dir=tmp_path).downloaded == 0


def test_the_table_of_data_sets_is_whole() -> None:
    assert set(DATASETS) == set(typing.get_args(DatasetName))
    for files in DATASETS.values():
        for file in files:
            assert file.size and file.digest and len(file.digest.hex) == 64
            assert len(file.urls) >= 2 and {name_from_url(url) for url in file.urls} == {file.name}


def test_again_is_free(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        arguments = {"url": (f"{server.url}/a", f"{server.url}/b"), "sha256": (SHA256, "-"), "output_dir": tmp_path}
        download(**arguments)
        record = (tmp_path / "_SUCCESS.json").stat().st_mtime_ns
        server.requests.clear()
        assert download(**arguments).downloaded == 0
        assert [request["path"] for request in server.requests] == ["/b"]
        assert "if-none-match" in server.requests[0]
    assert (tmp_path / "_SUCCESS.json").stat().st_mtime_ns == record
    assert download(**arguments, retries=0).downloaded == 0  # without the server


def test_a_change_at_the_server_needs_overwrite(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path)
        server.data = DATA[::-1]
        with pytest.raises(DataError, match=r"has changed at .*--overwrite=true"):
            download(url=(f"{server.url}/a",), output_dir=tmp_path)
        assert (tmp_path / "a").read_bytes() == DATA
        assert download(url=(f"{server.url}/a",), output_dir=tmp_path, overwrite=True).downloaded == 1
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


def test_what_is_there_is_not_destroyed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a").write_text("also mine")
    with serving(Behaviour(DATA)) as server:
        for digests in ((), (SHA256,)):
            with pytest.raises(DataError, match="--overwrite=true"):
                download(url=(f"{server.url}/a",), sha256=digests, output_dir=tmp_path)
        assert (tmp_path / "a").read_text() == "also mine"
        download(url=(f"{server.url}/b",), output_dir=tmp_path)
        download(url=(f"{server.url}/c",), output_dir=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert list(json.loads((tmp_path / "_SUCCESS.json").read_text())["inputs"]) == ["b", "c"]


def test_one_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        with pytest.raises(DataError, match="set aside"):
            download(url=(f"{server.url}/a", f"{server.url}/b"), sha256=("0" * 64, SHA256), output_dir=tmp_path)
        assert names(tmp_path) == [".a.bad", "b"]
        assert download(url=(f"{server.url}/a", f"{server.url}/b"), output_dir=tmp_path).downloaded == 1


def test_redirects_are_followed_and_bounded(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server, serving(Behaviour(redirect=f"{server.url}/evil.sh")) as first:
        download(url=(f"{first.url}/a",), output_dir=tmp_path)
        assert (tmp_path / "a").read_bytes() == DATA
        first.redirect = "/again"
        with pytest.raises(UsageError, match="302"):
            download(url=(f"{first.url}/b",), output_dir=tmp_path)
        first.redirect = "file:///etc/passwd"
        with pytest.raises(UsageError):
            download(url=(f"{first.url}/c",), output_dir=tmp_path)
    assert names(tmp_path) == ["_SUCCESS.json", "a"]


def test_a_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Behaviour(DATA)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        download(url=("http://data.invalid/a",), output_dir=tmp_path)
        assert proxy.requests[0]["path"] == "http://data.invalid/a"


def test_only_a_trusted_certificate_is_accepted(tmp_path: Path) -> None:
    key, certificate, output = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "out"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(Behaviour(DATA), context) as server:
        with pytest.raises(UsageError, match=r"certificate is not trusted .*SSL_CERT_FILE"):
            download(url=(f"{server.url}/a",), output_dir=output)
        trusting = {**os.environ, "SSL_CERT_FILE": str(certificate)}
        subprocess.run(_command(output, f"--url={server.url}/a"), check=True, capture_output=True, env=trusting)
    assert (output / "a").read_bytes() == DATA


@pytest.mark.parametrize(
    ("urls", "digests", "match"),
    [
        ((), (), "--url or --dataset must be given.*oxford-pets"),
        (("ftp://host/a",), (), "expected an http"),
        (("/data/a.tar",), (), "file:///data/a.tar"),
        (("https://host/",), (), "no file name"),
        (("https://host/a/..%2f..%2fpasswd",), (), "cannot be used"),
        (("https://host/.bashrc",), (), "cannot be used"),
        (("https://host/_SUCCESS.json",), (), "cannot be used"),
        (("https://user:secret@host/a",), (), "passwords"),
        (("http://one/a", "http://two/a"), (), "would both be a"),
        (("http://one/a", "http://two/b"), ("0" * 64,), "one for each"),
        (("http://one/a",), ("0" * 63,), "64 hexadecimal digits"),
        (("file:///missing/a",), (), "No such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use_is_told(tmp_path: Path, urls: tuple[str, ...], digests: tuple[str, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        download(url=urls, sha256=digests, output_dir=tmp_path)
    assert "secret" not in str(error.value)


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="oxford-pets, voc2007, voc2012, mnist, fashion-mnist"):
        download(dataset=typing.cast(DatasetName, "pets"), output_dir=tmp_path)


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["..", ".", "%2e", "%2F", "%00", "a", "/", "\\", "%5c"])).map("".join)
)
def test_no_address_names_a_file_outside(last: str) -> None:
    try:
        name = name_from_url(f"http://host/{last}")
    except UsageError:
        return
    assert Path("/out", name).resolve().parent == Path("/out")
    assert name not in ("", ".", "..") and not name.startswith(".")


def _command(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlcore", "download", f"--output-dir={output}", *arguments]


def test_a_killed_run_is_resumed_by_the_next(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(8 << 20)
    with serving(Behaviour(data, pause_s=0.01)) as server:
        process = subprocess.Popen(_command(tmp_path, f"--url={server.url}/a"))
        part = tmp_path / ".a.part"
        while not part.exists() or part.stat().st_size < 1 << 20:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == [".a.part", ".a.part.json"]
        kept = part.stat().st_size
        server.pause_s = 0
        subprocess.run(_command(tmp_path, f"--url={server.url}/a"), check=True, capture_output=True)
        assert server.requests[-1]["range"] == f"bytes={kept}-"
    assert (tmp_path / "a").read_bytes() == data
    assert names(tmp_path) == ["_SUCCESS.json", "a"]


def test_sigterm_ends_a_stalled_download_at_once(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, stall_s=30)) as server:
        process = subprocess.Popen(_command(tmp_path, f"--url={server.url}/a"), stderr=subprocess.DEVNULL)
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        started = time.monotonic()
        process.terminate()
        assert process.wait(10) == 143
        assert time.monotonic() - started < 3


def test_a_file_that_cannot_fit_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    space = Space(tmp_path)
    with pytest.raises(DiskFull, match=r"a: no room on the disk: [\d,]+ bytes are missing"):
        space.reserve("a", 1 << 60)
    assert names(tmp_path) == []


def test_a_full_disk_names_the_path_and_what_is_missing(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000)); import sys; " \
            "from mlcore.cli import main; raise SystemExit(main(sys.argv[1:]))"  # fmt: skip
    with serving(Behaviour(DATA)) as server:
        done = subprocess.run([sys.executable, "-c", limit, *_command(tmp_path, f"--url={server.url}/a")[3:]],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == TransientError.exit_code
        assert str(tmp_path / "a") in done.stderr and "400,000 of its 1,000,000 bytes are missing" in done.stderr
        assert names(tmp_path) == [".a.part", ".a.part.json"]
        download(url=(f"{server.url}/a",), output_dir=tmp_path)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_device_without_room_is_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / ".a.part").symlink_to("/dev/full")
    with serving(Behaviour(DATA)) as server, pytest.raises(DiskFull, match="the disk is full"):
        download(url=(f"{server.url}/a",), output_dir=tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_memory_stays_under_80_mb_for_200_mb(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mlcore.cli import main; code = main(sys.argv[1:]); "
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); raise SystemExit(code)"
    )
    with serving(Behaviour(random.Random(2).randbytes(200 << 20))) as server:
        done = subprocess.run([sys.executable, "-c", program, *_command(tmp_path, f"--url={server.url}/a")[3:]],
                              capture_output=True, text=True, check=True)  # fmt: skip
    assert (tmp_path / "a").stat().st_size == 200 << 20
    assert int(done.stdout.split()[-1]) < 80_000


def test_a_server_that_knows_no_if_range_does_not_mix_two_files(tmp_path: Path) -> None:
    with serving(Behaviour(DATA, if_range=False, cut_after=[400_000])) as server:
        with pytest.raises(TransientError):
            download(url=(f"{server.url}/a",), output_dir=tmp_path, retries=0, **QUICK)
        server.data = DATA[::-1]
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_what_came_before_each_reset_is_kept(tmp_path: Path, chunked: bool) -> None:
    with serving(Behaviour(DATA, cut_after=[150_000] * 6, resets=True, chunked=chunked)) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, retries=1, **QUICK)
        asked = [int(request.get("range", "bytes=0-")[6:-1]) for request in server.requests]
    assert (tmp_path / "a").read_bytes() == DATA
    assert asked == [150_000 * number for number in range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_a_slow_transfer_that_is_killed_keeps_what_came(tmp_path: Path, chunked: bool) -> None:
    with serving(Behaviour(DATA, pause_s=0.3, chunked=chunked)) as server:
        process = subprocess.Popen(_command(tmp_path, f"--url={server.url}/a"), stderr=subprocess.DEVNULL)
        while not server.requests:
            time.sleep(0.01)
        time.sleep(2)
        process.kill()
        process.wait()
    assert (tmp_path / ".a.part").stat().st_size >= 65_536


def test_a_failed_replacement_keeps_the_file_and_its_record(tmp_path: Path) -> None:
    with serving(Behaviour(DATA)) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
        before = (tmp_path / "_SUCCESS.json").read_bytes()
        server.data = b"new"
        server.statuses = [(0, {}), (404, {})]
        with pytest.raises(UsageError, match="404"):
            download(url=(f"{server.url}/a",), output_dir=tmp_path, overwrite=True, **QUICK)
        assert (tmp_path / "a").read_bytes() == DATA and (tmp_path / "_SUCCESS.json").read_bytes() == before
        download(url=(f"{server.url}/a",), output_dir=tmp_path, overwrite=True, **QUICK)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_proxy_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy, words in (
        ("127.0.0.1:1", "refused .*the proxy 127.0.0.1:1"),
        ("nohost.invalid:8", "of the proxy nohost"),
    ):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        with pytest.raises((TransientError, UsageError), match=words):
            download(url=("http://example.test/a",), output_dir=tmp_path, retries=0, **QUICK)


def test_a_long_wait_that_a_server_asks_for_is_told(tmp_path: Path) -> None:
    with (
        serving(Behaviour(DATA, statuses=[(429, {"Retry-After": "7200"})])) as server,
        pytest.raises(TransientError, match="429 Too Many Requests and asks to wait 2 h 00 min"),
    ):
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)


@pytest.mark.parametrize("headers", [{"Retry-After": "\u00b2"}, {"Content-Length": "\u00b2"}])
def test_numbers_that_are_none_are_not_read(tmp_path: Path, headers: dict[str, str]) -> None:
    with serving(Behaviour(DATA, headers=headers, statuses=[(503, headers)])) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_an_encoding_that_was_not_asked_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlcore")
    with serving(Behaviour(DATA, headers={"Content-Encoding": "gzip"})) as server:
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
    assert "gzip-encoded" in caplog.text


def test_the_scheme_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    download(url=(f"FILE://{tmp_path / 'a'}",), output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == DATA


@pytest.mark.parametrize(
    "url",
    ["http://user:secret@host:8x/f", "http://[::1/a b", "http://user:secret@[::1/f?key=secret", "file:///tmp/a%00b/x"],
)
def test_what_is_no_address_is_told_without_its_secrets(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="--url=") as error:
        download(url=(url,), output_dir=tmp_path)
    assert "secret" not in str(error.value)


def test_a_redirect_to_a_host_that_cannot_be_is_permanent(tmp_path: Path) -> None:
    with serving(Behaviour(redirect="http://a b/")) as server, pytest.raises(UsageError):
        download(url=(f"{server.url}/a",), output_dir=tmp_path, **QUICK)
