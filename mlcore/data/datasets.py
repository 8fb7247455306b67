"""Known data sets: where their files are, how large they are and what their bytes must hash to."""

from collections.abc import Mapping
from typing import Literal

from mlcore.data.remote import Digest, RemoteFile

DatasetName = Literal["oxford-pets", "voc2007", "voc2012", "mnist", "fashion-mnist"]


def _files(bases: tuple[str, ...], *files: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(name, tuple(base + name for base in bases), size, Digest("sha256", digits))
        for name, size, digits in files
    )


# Addresses in the order in which they are tried.
DATASETS: Mapping[DatasetName, tuple[RemoteFile, ...]] = {
    # https://www.robots.ox.ac.uk/~vgg/data/pets/ (CC BY-SA 4.0); thor is where the data moved to.
    "oxford-pets": _files(
        ("https://thor.robots.ox.ac.uk/~vgg/data/pets/", "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"),
        ("images.tar.gz", 791_918_971, "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
        ("annotations.tar.gz", 19_173_078, "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
    ),
    "voc2007": _files(
        ("http://host.robots.ox.ac.uk/pascal/VOC/voc2007/", "http://pjreddie.com/media/files/"),
        (
            "VOCtrainval_06-Nov-2007.tar",
            460_032_000,
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        ("VOCtest_06-Nov-2007.tar", 451_020_800, "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"),
    ),
    # The annotations of the test part were never published.
    "voc2012": _files(
        ("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "http://pjreddie.com/media/files/"),
        (
            "VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    ),
    # The original host (yann.lecun.com) answers 403.
    "mnist": _files(
        ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    # https://github.com/zalandoresearch/fashion-mnist (MIT); the S3 web site speaks no TLS, so it comes last.
    "fashion-mnist": _files(
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        ("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}
