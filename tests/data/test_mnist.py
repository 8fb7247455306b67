import functools
import gzip
import http.server
import shutil
import struct
import threading

import numpy as np
import pytest

from mlcore import cli
from mlcore.data.mnist import FILE_NAMES, load_mnist, mnist_download
from mlcore.runtime.errors import DataError, TransientError, UsageError

QUICK = {"retries": 0, "backoff_s": 0}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def write_idx(folder, train=12, t10k=6, classes=3, size=(4, 5)):
    """Four small files of the right form."""
    generator = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    for part, count in (("train", train), ("t10k", t10k)):
        images = generator.integers(0, 256, (count, *size), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        header = struct.pack(">4I", 0x803, count, *size)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes(), mtime=0))
        header = struct.pack(">2I", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes(), mtime=0))
    return folder


def test_mnist_becomes_arrays_in_a_directory_named_after_their_digest(shared_data, tmp_path, serve):
    result = mnist_download(output_dir=tmp_path / "out", mirror=(serve(shared_data / "mnist"),))
    assert result.data_dir == tmp_path / "out" / result.version
    assert (result.train, result.t10k, result.classes) == (60000, 10000, 10)
    with np.load(result.data_dir / "t10k" / "labels.npz") as archive:
        assert archive["labels"][:5].tolist() == [7, 2, 1, 0, 4]  # as every introduction shows them
    with np.load(result.data_dir / "train" / "imgs.npz") as archive:
        assert (archive["imgs"].shape, archive["imgs"].dtype) == ((60000, 28, 28), np.uint8)
    arrays, files = load_mnist(tmp_path / "out"), load_mnist(shared_data / "mnist")
    assert arrays.version == files.version == result.version
    np.testing.assert_array_equal(arrays.train.imgs, files.train.imgs)


def test_again_needs_no_server(shared_data, tmp_path):
    first = mnist_download(output_dir=tmp_path, mirror=(f"file://{shared_data / 'mnist'}",))
    shutil.rmtree(tmp_path / "downloads")
    before = (first.data_dir / "_SUCCESS.json").stat()
    assert mnist_download(output_dir=tmp_path, mirror=("http://127.0.0.1:9/",), **QUICK) == first
    after = (first.data_dir / "_SUCCESS.json").stat()  # all of it but the time it was read
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_same_files_give_the_same_bytes(tmp_path):
    source = write_idx(tmp_path / "source")
    outputs = [mnist_download(output_dir=tmp_path / name, url=f"file://{source}").data_dir for name in ("a", "b")]
    for name in ("train/imgs.npz", "train/labels.npz", "t10k/imgs.npz", "t10k/labels.npz", "classes.txt"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()


def test_another_set_stands_beside_the_first(tmp_path, serve):
    address = serve(tmp_path)
    one = write_idx(tmp_path / "one", classes=12, train=24)
    two = write_idx(tmp_path / "two", train=13)
    first = mnist_download(output_dir=tmp_path / "out", url=address + one.name)
    assert (first.classes, load_mnist(first.data_dir).classes[-1]) == (12, "11")
    with pytest.raises(DataError):
        mnist_download(output_dir=tmp_path / "out", url=address + two.name)
    second = mnist_download(output_dir=tmp_path / "out", url=address + two.name, overwrite=True)
    assert first.data_dir.is_dir() and second.data_dir != first.data_dir
    with pytest.raises(UsageError, match=f"several versions of the data .*{first.version}"):
        load_mnist(tmp_path / "out")


def test_wrong_digest_makes_no_arrays(tmp_path):
    source = write_idx(tmp_path / "source")
    with pytest.raises(DataError):
        mnist_download(output_dir=tmp_path / "out", url=f"file://{source}", sha256=("0" * 64, "-", "-", "-"))
    assert not list((tmp_path / "out").glob("*/train"))


def test_no_server_is_a_transient_failure(tmp_path):
    with pytest.raises(TransientError):
        mnist_download(output_dir=tmp_path, url="http://127.0.0.1:9/", **QUICK)


def test_file_of_another_size_than_its_labels(tmp_path):
    source = write_idx(tmp_path / "source")
    shutil.copy(source / FILE_NAMES[3], source / FILE_NAMES[1])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: count is 6, expected 12 as in train-images"):
        mnist_download(output_dir=tmp_path / "out", url=f"file://{source}")
    with pytest.raises(DataError, match="count is 6, expected 12"):
        load_mnist(source)


def test_images_of_two_sizes(tmp_path):
    source = write_idx(tmp_path / "source")
    shutil.copy(write_idx(tmp_path / "other", size=(3, 3)) / FILE_NAMES[2], source / FILE_NAMES[2])
    with pytest.raises(DataError, match="images of t10k are 3x3, those of train 4x5"):
        load_mnist(source)


def test_label_beyond_the_named_classes(tmp_path):
    source = write_idx(tmp_path / "source")
    (source / "classes.txt").write_text("zero\none\n")
    with pytest.raises(DataError, match=r"label 2 occurs, expected 0 to 1 \(2 classes\)"):
        load_mnist(source)


def test_missing_file_and_empty_folder_are_named(tmp_path):
    source = write_idx(tmp_path / "source")
    (source / FILE_NAMES[3]).unlink()
    with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte\.gz: no such file"):
        load_mnist(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--data-dir=.*empty: expected train/imgs\.npz"):
        load_mnist(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as .npz"),
        (lambda path: np.savez(path, imgs=np.zeros((12, 4, 5), np.float32)), "imgs is float32, expected uint8"),
        (lambda path: np.savez(path, other=np.zeros(3)), "holds no array imgs"),
        (lambda path: np.savez(path, imgs=np.zeros((12, 20), np.uint8)), r"shape \(12, 20\), expected \(count, rows"),
    ],
    ids=["cut", "floats", "name", "shape"],
)
def test_damaged_array_is_named(tmp_path, change, message):
    result = mnist_download(output_dir=tmp_path / "out", url=f"file://{write_idx(tmp_path / 'source')}")
    change(result.data_dir / "train" / "imgs.npz")
    with pytest.raises(DataError, match=f"imgs.npz: .*{message}"):
        load_mnist(result.data_dir)


def test_truncated_download_exits_65_and_names_the_file(tmp_path, capsys):
    source = write_idx(tmp_path / "source")
    path = source / FILE_NAMES[0]
    path.write_bytes(path.read_bytes()[:60])
    assert cli.main(["mnist-download", f"--output-dir={tmp_path / 'out'}", f"--url=file://{source}"]) == 65
    assert f"{FILE_NAMES[0]}: its gzip data is damaged or cut off" in capsys.readouterr().err


def test_directory_comes_from_the_tutorials_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "out"))
    assert cli.main(["mnist-download", f"--url=file://{write_idx(tmp_path / 'source')}"]) == 0
    version = next((tmp_path / "out").glob("*/train")).parent
    assert f"data_dir={version}" in capsys.readouterr().out


def test_digests_without_address_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--sha256 is given without --url"):
        mnist_download(output_dir=tmp_path, sha256=("0" * 64,))
