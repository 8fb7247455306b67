"""Servers behind an ingress: the host that it routes by, bearer tokens that are never shown, certificates."""

import datetime
import re
import socket
import ssl
import threading

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mlcore import cli
from mlcore.runtime.errors import UsageError
from mlcore.serving.clients import connect
from mlcore.serving.clients.access import Access
from mlcore.serving.clients.client import RequestRefusedError, UnavailableError
from tests.serving.models import block_images
from tests.serving.peers import Http, TfServing

HOST = "mnist.default.example.com"
TOKEN = "eyJhbGciOi.s3cret-t0ken"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with ca.pem, and server.pem and key.pem for HOST that this authority signed."""
    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def make(name, issuer, signer, authority):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder(subject_name=subject, issuer_name=issuer or subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return key, builder.sign(signer or key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    ca_key, ca = make("an authority of a test", None, None, True)
    key, server = make(HOST, ca.subject, ca_key, False)
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture(scope="module")
def tls_serving(model_bases, certificates):
    """TensorFlow Serving's gRPC behind TLS."""
    key, server = ((certificates / name).read_bytes() for name in ("key.pem", "server.pem"))
    peer = TfServing({"blocks": model_bases["blocks"]}, tls=(key, server))
    yield peer
    peer.stop()


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def imgs():
    return {"imgs": block_images(np.array([3]))}


def test_verify_by_grpc_with_tls_takes_host_token_and_authority(
    tls_serving, block_data, certificates, token_file, capsys
):
    before = len(tls_serving.authorizations)
    code = cli.main([
        "verify", f"--server=https://127.0.0.1:{tls_serving.port}", "--model-name=blocks", f"--host-header={HOST}",
        f"--token-file={token_file}", f"--ca-file={certificates / 'ca.pem'}", f"--data-dir={block_data}",
        "--samples=20", "--acceptable-accuracy=0.99", "--log-level=DEBUG",
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0 and " accuracy=1.000000\n" in out
    assert set(tls_serving.authorizations[before:]) == {f"Bearer {TOKEN}"}
    assert TOKEN not in out + err


def test_versions_asks_a_server_with_host_token_and_authority(
    tls_serving, model_bases, certificates, token_file, capsys
):
    before = len(tls_serving.authorizations)
    address = f"https://127.0.0.1:{tls_serving.port}"
    code = cli.main([
        "versions", str(model_bases["blocks"]), f"--server={address}", "--model-name=blocks", f"--host-header={HOST}",
        f"--token-file={token_file}", f"--ca-file={certificates / 'ca.pem'}",
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0 and address in out
    assert set(tls_serving.authorizations[before:]) == {f"Bearer {TOKEN}"}
    assert TOKEN not in out + err


def test_rest_with_tls_takes_host_token_and_authority(certificates, token_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "key.pem")
    names = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    peer = Http({"/v1/models/m:predict": [(200, {"predictions": [1]})]}, tls=context)
    try:
        access = Access.read(f"{HOST}:443", token_file, certificates / "ca.pem")
        with connect(f"https://{peer.address}", "v1", "m", access=access, deadline_s=10) as client:
            client.predict({"x": np.zeros((1, 2), np.float32)})
        headers = {name.lower(): value for name, value in peer.requests[-1][3].items()}
        assert headers["host"] == f"{HOST}:443" and headers["authorization"] == f"Bearer {TOKEN}"
        assert names == [HOST]
    finally:
        peer.stop()


@pytest.mark.parametrize(("host", "trusted"), [(HOST, False), (None, True), ("other.example.com", True)])
@pytest.mark.parametrize("protocol", ["tfs-grpc", "v1"])
def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    tls_serving, certificates, protocol, host, trusted
):
    access = Access.read(host, None, certificates / "ca.pem" if trusted else None)
    address = f"https://127.0.0.1:{tls_serving.port}"
    with (
        connect(address, protocol, "blocks", access=access, deadline_s=0.4) as client,
        pytest.raises(UnavailableError, match=r"(?i)certificate.verify.failed|hostname verification"),
    ):
        client.predict(imgs())


def test_grpc_without_tls_asks_for_the_host():
    came = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen():
            nonlocal came
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                connection.sendall(bytes(3) + b"\x04" + bytes(5))  # empty SETTINGS
                while b"Predict" not in came or HOST.encode() not in came:
                    came += connection.recv(65536)

        thread = threading.Thread(target=listen)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            connect(address, "tfs-grpc", "m", access=Access(HOST), deadline_s=0.5) as client,
            pytest.raises(UnavailableError),
        ):
            client.predict(imgs())
        thread.join()
    assert HOST.encode() in came


def test_the_token_of_the_environment_is_sent_and_no_message_shows_it(monkeypatch, capsys):
    monkeypatch.setenv("MLCORE_SERVER_TOKEN", TOKEN)
    peer = Http({"/v1/models/m": [(401, {"error": "who are you?"})], "/v1/models/m/metadata": [(401, {})]})
    try:
        arguments = ["verify", f"--server={peer.address}", "--protocol=v1", "--model-name=m", "--ready-timeout-s=0.3"]
        assert cli.main([*arguments, "--log-level=DEBUG"]) == 75
        out, err = capsys.readouterr()
        assert "401 Unauthorized: who are you?" in err
        assert {headers.get("authorization") for *_, headers in peer.requests} == {f"Bearer {TOKEN}"}
        access = Access.read(None, None, None)
        assert TOKEN not in out + err + repr(access)
        with (
            connect(peer.address, "v1", "m", access=access) as client,
            pytest.raises(RequestRefusedError, match="401") as refused,
        ):
            client.metadata()
        assert TOKEN not in str(refused.value) + repr(client.server)
    finally:
        peer.stop()


def test_a_token_that_goes_in_the_clear_is_warned_of(caplog):
    for address, warned in (("10.1.2.3:8080", 1), ("localhost:8080", 0), ("https://10.1.2.3", 0)):
        caplog.clear()
        connect(address, "v1", "m", access=Access(token=TOKEN)).close()
        assert len(caplog.records) == warned
        assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("flag", "content", "words"),
    [
        ("token_file", None, "--token-file=.*: cannot be read"),
        ("token_file", "", "a token in one line"),
        ("token_file", "one\ntwo", "a token in one line"),
        ("ca_file", None, "--ca-file=.*: cannot be read"),
        ("ca_file", "two", "no certificates in PEM form"),
    ],
)
def test_a_wrong_file_is_named_and_not_shown(tmp_path, flag, content, words):
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=words) as error:
        Access.read(None, **({"token_file": None, "ca_file": None} | {flag: file}))
    assert not re.search("one two|two\\b", str(error.value).replace("\n", " ").replace("one line", ""))


def test_flags_without_use_are_refused(tmp_path, certificates):
    with pytest.raises(UsageError, match="--host-header=a b: expected a host"):
        Access.read("a b", None, None)
    access = Access.read(None, None, certificates / "ca.pem")
    with pytest.raises(UsageError, match="--ca-file has no use"):
        connect("localhost:8500", "tfs-grpc", "m", access=access)
    arguments = ["predict", f"--input={tmp_path}", f"--output-dir={tmp_path / 'o'}", f"--model={tmp_path}"]
    assert cli.main([*arguments, f"--host-header={HOST}"]) == 2
