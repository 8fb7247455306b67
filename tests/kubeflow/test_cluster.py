"""How the cluster is found, and what is said where there is none."""

import datetime
import ipaddress
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mlcore.kubeflow.cluster import Resource, Timing, connect
from mlcore.runtime.errors import TransientError, UsageError
from tests.kubeflow.api_server import TOKEN, ApiServer, Fault

QUICK = Timing(connect_s=2, answer_s=2, patience_s=0.4, backoff_s=0.05, backoff_max_s=0.2)
TFJOBS = Resource("kubeflow.org", "v1", "tfjobs", "TFJob", "the training operator")


def ask(cluster):
    return cluster.get(TFJOBS, "team", "none")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Nothing says where a cluster is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that vouches for itself: (certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(today - datetime.timedelta(1)).not_valid_after(today + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "tls.crt", folder / "tls.key"


@pytest.fixture
def tls_api(definitions, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ApiServer(definitions, context).serving() as server:
        yield server


def test_kubeconfig_is_found_in_the_environment_or_at_home(api, alone, monkeypatch):
    (alone / ".kube").mkdir()
    api.kubeconfig(alone / ".kube" / "config", namespace="at-home")
    assert connect(timing=QUICK).namespace == "at-home"
    other = api.kubeconfig(alone / "other", namespace="")
    monkeypatch.setenv("KUBECONFIG", str(other))
    cluster = connect(timing=QUICK)
    assert cluster.namespace == "default"
    assert ask(cluster) is None


def test_pod_uses_its_service_account_over_tls(tls_api, alone, certificate, monkeypatch):
    account = alone / "account"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "namespace").write_text("team\n")
    (account / "ca.crt").write_bytes(certificate[0].read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(tls_api.port))
    cluster = connect(timing=QUICK, service_account=account)
    assert cluster.namespace == "team"
    assert ask(cluster) is None


def test_server_with_a_strange_certificate_is_wrong_use(tls_api, alone, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tls_api.kubeconfig(alone / "config")))
    with pytest.raises(UsageError, match="certificate authority does not vouch for its certificate"):
        ask(connect(timing=QUICK))


def test_no_configuration_at_all(alone):
    with pytest.raises(UsageError, match="no cluster is configured: set KUBECONFIG"):
        connect()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not: [yaml", "cannot be read|kubeconfig"),
        ("a: 1\n", "kubeconfig"),
        ("", "kubeconfig"),
        ("current-context: x\ncontexts: []\nclusters: []\nusers: []\n", "x"),
    ],
)
def test_broken_kubeconfig_is_named(alone, monkeypatch, content, words):
    path = alone / "broken"
    path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(UsageError, match=words) as raised:
        connect()
    assert str(path) in str(raised.value)


def test_kubeconfig_that_is_not_there(alone, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(alone / "missing"))
    with pytest.raises(UsageError, match="missing"):
        connect()


def test_context_that_is_not_there(api, kubeconfig):
    with pytest.raises(UsageError, match=r"--context=other: kubeconfig .*other"):
        connect(context="other")
    assert ask(connect(context="tests", timing=QUICK)) is None


def test_wrong_token(api, kubeconfig, tmp_path):
    api.kubeconfig(tmp_path / "kubeconfig", token="old")
    with pytest.raises(UsageError, match="does not know who is asking \\(401\\)"):
        ask(connect(timing=QUICK))


@pytest.mark.parametrize(
    ("server", "words"),
    [("http://127.0.0.1:1", "Connection refused"), ("http://no-such-host.invalid", "resolve|Name|resolution")],
    ids=["refused", "no-name"],
)
def test_no_server_is_transient_after_a_bounded_time(api, kubeconfig, tmp_path, server, words):
    api.kubeconfig(tmp_path / "kubeconfig", server=server)
    started = time.monotonic()
    with pytest.raises(TransientError, match=words) as raised:
        ask(connect(timing=QUICK))
    assert time.monotonic() - started < 5
    assert server in str(raised.value) and "\n" not in str(raised.value)


def test_something_that_is_no_api_server(api, kubeconfig):
    api.faults.append(Fault(status=200, reason="", times=100))
    with pytest.raises(UsageError, match="expected a Kubernetes API server"):
        ask(connect(timing=QUICK))


def test_quota_that_is_exceeded_may_pass(api, kubeconfig):
    from tests.kubeflow.object_store import Refusal

    def refuse(*_):
        raise Refusal(403, "Forbidden", 'tfjobs.kubeflow.org "x" is forbidden: exceeded quota: gpus, requested: 1')

    api.authorise = refuse
    with pytest.raises(TransientError, match="exceeded quota: gpus"):
        ask(connect(timing=QUICK))


@pytest.mark.slow
def test_proxy_of_the_environment_is_taken_but_not_for_this_machine(api, kubeconfig, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask(connect(timing=QUICK)) is None
    api.kubeconfig(tmp_path / "kubeconfig", server="http://cluster.invalid:6443")
    with pytest.raises(TransientError, match=r"[Pp]roxy|refused"):
        ask(connect(timing=QUICK))
    monkeypatch.setenv("no_proxy", ".invalid")
    with pytest.raises(TransientError, match=r"resolve|Name|resolution"):
        ask(connect(timing=QUICK))


def test_missing_package_is_named_with_its_extra(kubeconfig, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(UsageError, match=r"kubernetes is not installed: pip install 'mlcore\[kubeflow\]'"):
        connect()
