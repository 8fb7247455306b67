"""Every image does what an orchestrator relies on: tried by running it."""

import json
import time

import pytest

from mlcore import __version__
from mlcore.cli import STEPS
from tests.images.containers import OFFLINE, Image, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UIDS = ("10001:0", "10001:10001", "1000740000:0")  # the image's own, one of no group, one as OpenShift gives
SITE_PACKAGES = "/opt/mlcore/lib/python3*/site-packages"


@pytest.fixture(params=STEPS)
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    """The image of each step in turn."""
    return images[request.param]


@pytest.fixture
def waiting(image: Image, container: str, pipe: str) -> str:
    """A container whose step is running and does not end."""
    docker("run", "--detach", f"--name={container}", *OFFLINE, f"--volume={pipe}:/data:ro", image.reference,
           "--config=/data/pipe")  # fmt: skip
    time.sleep(1)
    assert running(container)
    return container


def running(container: str) -> bool:
    return docker("inspect", "--format={{.State.Running}}", container).stdout.strip() == "true"


def exit_code(container: str) -> int:
    return int(docker("inspect", "--format={{.State.ExitCode}}", container).stdout)


@pytest.mark.parametrize("user", UIDS)
def test_help_and_version_as_any_user_without_privileges_or_network(image, user):
    shown = image.run("--version", options=(*OFFLINE, f"--user={user}"))
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"mlcore {__version__}\n", "")
    shown = image.run("--help", options=(*OFFLINE, f"--user={user}"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: mlcore {image.step} ")


def test_help_is_there_within_600_ms(image):
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert image.run("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    # The best of five: the machine may be busy. Help imports nothing heavy, so that it holds for all images.
    assert min(seconds) <= 0.6


def test_wrong_use_is_2_and_one_line_on_stderr(image):
    result = image.run("--no-such-flag=1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "--no-such-flag" in result.stderr


def test_sigterm_ends_it_with_143(waiting):
    started = time.monotonic()
    docker("kill", "--signal=TERM", waiting)
    docker("wait", waiting)
    assert time.monotonic() - started < 10
    assert exit_code(waiting) == 143


def test_sigterm_right_after_the_start_ends_it_with_143(image, container, pipe):
    docker("create", f"--name={container}", *OFFLINE, f"--volume={pipe}:/data:ro", image.reference,
           "--config=/data/pipe")  # fmt: skip
    docker("start", container)
    docker("kill", "--signal=TERM", container)
    docker("wait", container, timeout=10)
    assert exit_code(container) == 143


def test_orphans_leave_no_zombie(waiting):
    docker("exec", waiting, "sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)")
    time.sleep(0.5)
    states = docker("exec", waiting, "sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert "(sleep)" not in states
    assert ") Z " not in states


def test_runs_as_a_numeric_user_with_labels_and_one_entry_point(image):
    (details,) = json.loads(docker("image", "inspect", image.reference).stdout)
    config = details["Config"]
    assert config["User"] == "10001:0"
    assert config["Entrypoint"] == ["dumb-init", "--single-child", "--", "python", "/opt/step"]
    assert config["WorkingDir"] == "/data"
    assert config["Labels"]["org.opencontainers.image.title"] == f"mlcore {image.step}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not [name for name in config["Env"] if "TOKEN" in name or "PASSWORD" in name or "INDEX" in name]


def test_the_mlcore_command_runs_the_step_as_well(image):
    result = docker("run", "--rm", *OFFLINE, "--entrypoint=sh", image.reference, "-c", f"mlcore {image.step} --version")
    assert result.stdout == f"mlcore {__version__}\n"


def test_holds_no_setuid_or_world_writable_file_no_installer_no_cache(image):
    bad = image.shell("find / -xdev -type f \\( -perm /6000 -o -perm -o+w \\)")
    assert bad == ""
    # Folders that all may write to have the sticky bit, as /tmp has.
    assert image.shell("find / -xdev -type d -perm -o+w ! -perm -1000") == ""
    packages = f"{SITE_PACKAGES}/pip {SITE_PACKAGES}/setuptools {SITE_PACKAGES}/wheel"
    left = f"{packages} /usr/local/bin/pip* /root/.cache /tmp/* /src /run/*.txt"
    assert image.shell(f"ls -d {left} 2>/dev/null || true") == ""
    assert image.shell("find / -xdev \\( -name .git -o -name .netrc -o -name pip.conf -o -name '*.pem' -path '/opt/*' "
                       "! -name cacert.pem \\)") == ""  # fmt: skip


def test_holds_compiled_bytecode_for_every_module(image):
    script = """
import importlib.util, pathlib, struct
site, = pathlib.Path("/opt/mlcore/lib").glob("python3*/site-packages")
for source in site.rglob("*.py"):
    try:
        flags = struct.unpack("<I", pathlib.Path(importlib.util.cache_from_source(source)).read_bytes()[4:8])[0]
    except FileNotFoundError:
        flags = None
    if flags != 1:  # an unchecked hash: valid whatever the source's time
        print(source.relative_to(site))
"""
    missing = docker("run", "--rm", "--network=none", "--entrypoint=python", image.reference, "-c", script).stdout
    # Templates that are no valid Python cannot be compiled.
    assert [line for line in missing.splitlines() if "template" not in line] == []


def test_each_package_is_the_locked_one_and_nothing_else(image, project):
    script = """
import importlib.metadata
for package in importlib.metadata.distributions():
    print(package.metadata["Name"].lower().replace("_", "-").replace(".", "-"), package.version)
"""
    listed = docker("run", "--rm", "--network=none", "--entrypoint=python", image.reference, "-c", script).stdout
    locked = (project / "docker" / "requirements" / f"{image.flavour}.txt").read_text()
    for line in listed.splitlines():
        name, version = line.split()
        assert name == "mlcore" or f"\n{name}=={version} " in f"\n{locked}", line
