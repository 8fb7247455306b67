"""`extract`, on archives made by tarfile, zipfile and GNU tar."""

import io
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.data.archive_target import Bounds, Target, link_target, member_path
from mlcore.data.extract import extract
from mlcore.runtime.errors import DataError, TransientError, UsageError


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info, b""


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "_SUCCESS.json"
    }


def refused(archive: Path, tmp_path: Path, match: str, **parameters: object) -> None:
    """The archive is refused by name and for the reason, and nothing is left."""
    with pytest.raises(DataError, match=match) as error:
        extract(archive=(archive,), output_dir=tmp_path / "out", **parameters)
    assert str(archive) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


def test_bccd_comes_out_as_gnu_tar_unpacks_it(shared_data: Path, tmp_path: Path) -> None:
    done = extract(archive=(shared_data / "bccd.tar.gz",), output_dir=tmp_path / "ours")
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-xzf", shared_data / "bccd.tar.gz", "-C", tmp_path / "gnu"], check=True)
    assert tree(tmp_path / "ours") == tree(tmp_path / "gnu")
    assert done.files == len(tree(tmp_path / "gnu"))
    one = "BCCD/JPEGImages/BloodImage_00000.jpg"
    assert (tmp_path / "ours" / one).stat().st_mtime == (tmp_path / "gnu" / one).stat().st_mtime


@pytest.mark.parametrize("suffix", ["", "gz", "bz2", "xz"])
def test_every_tar_format_unpacks(tmp_path: Path, suffix: str) -> None:
    data = random.Random(1).randbytes(700_000)
    archive = tar_of(tmp_path / "a", ("d/x.bin", data), ("empty", b""), mode=f"w:{suffix}" if suffix else "w")
    result = extract(archive=(archive,), output_dir=tmp_path / "out")
    assert tree(tmp_path / "out") == {"d/x.bin": data, "empty": b""}
    assert (result.files, result.bytes) == (2, 700_000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_zip_method_unpacks(tmp_path: Path, method: int) -> None:
    data = random.Random(1).randbytes(300_000) + bytes(300_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("d/x.bin", data)
        archive.writestr("d\\w.txt", b"from Windows")
        archive.writestr("empty/", b"")
        archive.writestr("none", b"")
    extract(archive=(tmp_path / "a.zip",), output_dir=tmp_path / "out")
    assert tree(tmp_path / "out") == {"d/w.txt": b"from Windows", "d/x.bin": data, "none": b""}
    assert (tmp_path / "out" / "empty").is_dir()


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive(tmp_path: Path, dialect: int) -> None:
    name = "ä" * 60 + "/" + "n" * 200
    with tarfile.open(tmp_path / "a.tar", "w", format=dialect) as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    extract(archive=(tmp_path / "a.tar",), output_dir=tmp_path / "out")
    assert list(tree(tmp_path / "out")) == [name]


@pytest.mark.parametrize("dialect", ["--format=gnu", "--sparse-version=0.1", "--sparse-version=1.0"])
def test_sparse_files_unpack_with_their_holes(tmp_path: Path, dialect: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with (folder / "s").open("wb") as file:
        for offset in (0, 3 << 20, 9 << 20):
            file.seek(offset)
            file.write(b"data" * 1000)
        file.truncate(12 << 20)
    options = [dialect] if dialect.startswith("--format") else ["--format=posix", dialect]
    subprocess.run(["tar", "--sparse", *options, "-cf", tmp_path / "a.tar", "-C", folder, "s"], check=True)
    extract(archive=(tmp_path / "a.tar",), output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "s").read_bytes() == (folder / "s").read_bytes()


def test_links_that_stay_inside_work(tmp_path: Path) -> None:
    members = (("d/f", b"x"), special("d/hard", tarfile.LNKTYPE, "d/f"), special("e/soft", tarfile.SYMTYPE, "../d/f"))
    extract(archive=(tar_of(tmp_path / "a.tar", *members),), output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "d" / "hard").stat().st_nlink == 2
    assert str((tmp_path / "out" / "e" / "soft").readlink()) == "../d/f"
    assert (tmp_path / "out" / "e" / "soft").read_bytes() == b"x"


def test_rights_are_masked(tmp_path: Path) -> None:
    members = [special("s", tarfile.REGTYPE, mode=0o6777), special("p", tarfile.REGTYPE, mode=0o000)]
    extract(archive=(tar_of(tmp_path / "a.tar", *members),), output_dir=tmp_path / "out")
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out" / "s").stat().st_mode) == 0o755 & ~umask
    assert stat.S_IMODE((tmp_path / "out" / "p").stat().st_mode) == 0o600


def test_the_last_member_of_a_name_wins(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("f", b"old"), special("g", tarfile.LNKTYPE, "f"), ("f", b"new"))
    extract(archive=(archive,), output_dir=tmp_path / "out")
    assert tree(tmp_path / "out") == {"f": b"new", "g": b"old"}


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (("/etc/x", b""), "absolute"),
        (("a/../../x", b""), "out of the output"),
        (special("l", tarfile.SYMTYPE, "/etc/passwd"), "absolute"),
        (special("d/l", tarfile.SYMTYPE, "../../x"), "leads out"),
        (special("l", tarfile.LNKTYPE, "/etc/passwd"), "absolute"),
        (special("l", tarfile.LNKTYPE, "missing"), "no file before it"),
        (special("c", tarfile.CHRTYPE), "device"),
        (special("p", tarfile.FIFOTYPE), "device or a pipe"),
        (special("z", b"Z"), "unknown kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dangerous_members_are_refused(tmp_path: Path, member: tuple[tarfile.TarInfo | str, bytes], match: str) -> None:
    refused(tar_of(tmp_path / "a.tar", ("first", b"1"), member), tmp_path, match)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "a.tar", special("l", tarfile.SYMTYPE, "d"), ("l/f", b"x")), tmp_path, "l is a link")


def test_links_that_lead_out_together_are_refused(tmp_path: Path) -> None:
    members = (("x/y/f", b""), special("x/a", tarfile.SYMTYPE, "y/.."), special("x/y/b", tarfile.SYMTYPE, "../../x"),
               special("c", tarfile.SYMTYPE, "x/y/b/../.."))  # fmt: skip
    refused(tar_of(tmp_path / "a.tar", *members), tmp_path, "leads out")


def test_zip_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind, content, match in ((stat.S_IFLNK, "../../etc", "leads out"), (stat.S_IFCHR, "", "device")):
        info = zipfile.ZipInfo("bad")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(info, content)
        refused(tmp_path / "a.zip", tmp_path, match)


_PARTS = st.lists(st.sampled_from(["..", ".", "", "a", "b", "c d", "é", "\\", "..."]), max_size=8)


@given(st.text(max_size=40) | _PARTS.map("/".join))
def test_no_member_name_leads_out(name: str) -> None:
    try:
        path = member_path(name)
    except (ValueError, UnicodeEncodeError):
        return
    resolved = os.path.normpath(f"/root/out/{path}")
    assert resolved == "/root/out" or resolved.startswith("/root/out/")


@given(_PARTS.map("/".join), _PARTS.map("/".join))
def test_no_link_leads_out(name: str, target: str) -> None:
    try:
        path = member_path(name)
        link_target(path, target)
    except ValueError:
        return
    resolved = os.path.normpath(f"/root/out/{path.rpartition('/')[0]}/{target}")
    assert resolved == "/root/out" or resolved.startswith("/root/out/")


@pytest.mark.parametrize("suffix", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_a_cut_archive_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    data = random.Random(2).randbytes(300_000)
    archive = tar_of(tmp_path / "a", ("one", data), ("two", data), mode=f"w:{suffix}" if suffix else "w")
    os.truncate(archive, int(archive.stat().st_size * part))
    refused(archive, tmp_path, "cut" if part < 0.9 else "a: ")


def test_a_cut_between_members_is_noticed(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("one", b"1" * 512), ("two", b"2" * 512))
    os.truncate(archive, 1024)
    refused(archive, tmp_path, "cut")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_flipped_byte_is_noticed(tmp_path: Path, suffix: str) -> None:
    archive = tar_of(tmp_path / "a", ("one", random.Random(3).randbytes(300_000)), mode=f"w:{suffix}")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0x55
    archive.write_bytes(content)
    refused(archive, tmp_path, "damaged|a: ")


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("one", b"1"), ("two", b"2"))
    content = bytearray(archive.read_bytes())
    content[1024:1030] = b"#####!"
    archive.write_bytes(content)
    refused(archive, tmp_path, "damaged header")


def test_damaged_zip_members_are_named(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("member.bin", random.Random(4).randbytes(100_000))
        content = bytearray((tmp_path / "a.zip").read_bytes())
        content[50_000] ^= 0xFF
        (tmp_path / "a.zip").write_bytes(content)
        refused(tmp_path / "a.zip", tmp_path, "member.bin")


@pytest.mark.parametrize("content", [b"", b"hello" * 300, b"\x1f\x8b" + bytes(600), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    refused(tmp_path / "a.tar.gz", tmp_path, "is empty|no archive|holds no tar|damaged")


def test_a_gzip_that_holds_no_tar_is_refused(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "mnist" / "t10k-labels-idx1-ubyte.gz", tmp_path / "a.gz")
    refused(tmp_path / "a.gz", tmp_path, "holds no tar")


def test_bounds_hold(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", *[(f"f{number}", b"x" * 100) for number in range(5)])
    refused(archive, tmp_path, "more than 4 members", max_files=4)
    refused(archive, tmp_path, "more than 499 bytes", max_bytes=499)


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a_bomb_is_stopped_early(tmp_path: Path, kind: str) -> None:
    bomb = tmp_path / "bomb"
    if kind == "gz":
        tar_of(bomb, ("zeros", bytes(100 << 20)), mode="w:gz")
    else:
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(100 << 20))
    refused(bomb, tmp_path, "max-ratio")


def test_a_huge_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("h")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    refused(tmp_path / "a.tar", tmp_path, "damaged header")


def test_several_archives_are_unpacked_together(tmp_path: Path) -> None:
    one = tar_of(tmp_path / "one.tar.gz", ("d/a", b"a"), ("d/b", b"b"), mode="w:gz")
    two = tar_of(tmp_path / "two.tar", special("d", tarfile.DIRTYPE), ("d/c", b"c"))
    extract(archive=(one, two), output_dir=tmp_path / "out")
    assert tree(tmp_path / "out") == {"d/a": b"a", "d/b": b"b", "d/c": b"c"}


def test_a_file_in_two_archives_is_refused_naming_both(tmp_path: Path) -> None:
    one, two = tar_of(tmp_path / "one.tar", ("d/a", b"1")), tar_of(tmp_path / "two.tar", ("d/a", b"2"))
    with pytest.raises(DataError) as error:
        extract(archive=(one, two), output_dir=tmp_path / "out")
    assert all(text in str(error.value) for text in (str(one), str(two), "d/a"))
    assert not (tmp_path / "out").exists()


def test_again_is_up_to_date_and_another_archive_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("f", b"1"))
    first = extract(archive=(archive,), output_dir=tmp_path / "out")
    written = (tmp_path / "out" / "f").stat().st_ctime_ns
    assert extract(archive=(archive,), output_dir=tmp_path / "out") == first
    assert (tmp_path / "out" / "f").stat().st_ctime_ns == written
    tar_of(archive, ("f", b"2"), ("g", b""))
    with pytest.raises(DataError, match="overwrite"):
        extract(archive=(archive,), output_dir=tmp_path / "out")
    extract(archive=(archive,), output_dir=tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == {"f": b"2", "g": b""}


def test_a_missing_archive_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--archive=.*missing\.tar"):
        extract(archive=(tmp_path / "missing.tar",), output_dir=tmp_path / "out")


def test_members_are_not_written_where_there_is_no_room(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("small", b"1"), ("large", bytes(3 << 20)))
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); " \
              f"from mlcore.cli import main; raise SystemExit(main(['extract', '--archive={archive}', " \
              f"'--output-dir={tmp_path / 'out'}']))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == TransientError.exit_code
    assert "large" in done.stderr and "no room" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_device_that_is_full_is_named(tmp_path: Path) -> None:
    target = Target(tmp_path, ["a.tar"], Bounds(9, 9))
    with pytest.raises(TransientError, match="no room"), target.file(0, "f", 0o644, 0) as descriptor:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, descriptor)
        os.close(full)
        os.write(descriptor, b"x")


def test_memory_stays_small_and_a_kill_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("large")
        info.size = 300 << 20
        with Path("/dev/zero").open("rb") as zeros:
            tar.addfile(info, zeros)
    command = [sys.executable, "-m", "mlcore", "extract", f"--archive={archive}", f"--output-dir={tmp_path / 'out'}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any(path.name.startswith(".out") for path in tmp_path.iterdir()):
        threading.Event().wait(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    program = (
        "import sys; from pathlib import Path; from mlcore.cli import main; code = main(sys.argv[1:]); "
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command[3:]], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 80_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out"]


@pytest.mark.parametrize(
    "member",
    ["_SUCCESS.json", "./_SUCCESS.json", "_SUCCESS.json/x", special("_SUCCESS.json", tarfile.SYMTYPE, "a"),
     special("_SUCCESS.json", tarfile.LNKTYPE, "a"), special("_SUCCESS.json", tarfile.DIRTYPE)],
)  # fmt: skip
def test_the_name_of_the_record_is_no_members(tmp_path: Path, member: str | tuple[tarfile.TarInfo, bytes]) -> None:
    taken = (member, b"{}") if isinstance(member, str) else member
    refused(tar_of(tmp_path / "a.tar", ("a", b"1"), taken), tmp_path, "kept for the record of the step")


def test_a_record_below_a_folder_is_kept(tmp_path: Path) -> None:
    extract(archive=(tar_of(tmp_path / "a.tar", ("rec/_SUCCESS.json", b"{}")),), output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "rec" / "_SUCCESS.json").read_bytes() == b"{}"


def windows_zip(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo()
            info.filename = info.orig_filename = name
            archive.writestr(info, data)
    return path


def test_folders_of_a_zip_made_on_windows_are_folders(tmp_path: Path) -> None:
    archive = windows_zip(tmp_path / "a.zip", ("dir\\", b""), ("dir\\a.txt", b"1"))
    extract(archive=(archive,), output_dir=tmp_path / "out")
    assert tree(tmp_path / "out") == {"dir/a.txt": b"1"}


def test_a_zip_member_without_a_name_is_refused(tmp_path: Path) -> None:
    refused(windows_zip(tmp_path / "a.zip", ("a", b"1"), ("", b"1")), tmp_path, "it has no name")


def test_the_archive_is_not_replaced_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    archive = tar_of(folder / "a.tar", ("a", b"1"))
    with pytest.raises(UsageError, match=r"holds .*a\.tar, which the step reads"):
        extract(archive=(archive,), output_dir=folder, overwrite=True)
    assert archive.exists()


def test_what_a_user_deleted_stays_so_until_it_is_wanted_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlcore")
    archive = tar_of(tmp_path / "a.tar", ("a", b"1"), ("b", b"2"))
    first = extract(archive=(archive,), output_dir=tmp_path / "out")
    (tmp_path / "out" / "b").unlink()
    (tmp_path / "out" / "a").write_bytes(b"")
    assert extract(archive=(archive,), output_dir=tmp_path / "out") == first
    assert "1 of the 2 files that were written are gone; taken as it is, --overwrite=true makes it anew" in caplog.text
    assert tree(tmp_path / "out") == {"a": b""}
    assert extract(archive=(archive,), output_dir=tmp_path / "out", overwrite=True) == first
    assert tree(tmp_path / "out") == {"a": b"1", "b": b"2"}


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is no regular file"):
        extract(archive=(tmp_path / "pipe",), output_dir=tmp_path / "out")
