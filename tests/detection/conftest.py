"""Record sets for the tests of detection, made by the data steps from pictures drawn here."""

import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mlcore.data.convert import convert

CLASSES = ("circle", "square")
WIDTH, HEIGHT = 96, 64


def draw_pets(folder: Path, count: int = 24) -> Path:
    """Pictures with one shape each, in the layout of Oxford-IIIT Pet, whose trimaps give boxes and masks."""
    generator = random.Random(0)
    for name in ("images", "annotations/trimaps", "annotations/xmls"):
        (folder / name).mkdir(parents=True)
    names = []
    for number in range(count):
        label = CLASSES[number % 2]
        name = f"{label}_{number}"
        picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(generator.randrange(120) for _ in range(3)))
        trimap = Image.new("L", (WIDTH, HEIGHT), 2)
        side = generator.randrange(20, 44)
        left, top = generator.randrange(WIDTH - side), generator.randrange(HEIGHT - side)
        box = [left, top, left + side, top + side]
        for image, fill in ((picture, (230, generator.randrange(256), 240)), (trimap, 1)):
            pen = ImageDraw.Draw(image)
            (pen.ellipse if label == "circle" else pen.rectangle)(box, fill=fill)
        picture.save(folder / f"images/{name}.jpg", quality=90)
        trimap.save(folder / f"annotations/trimaps/{name}.png")
        names.append(name)
    lines = "".join(f"{name} 1 1 1\n" for name in names)
    test = "".join(f"{name} 1 1 1\n" for name in names[-4:])
    (folder / "annotations/trainval.txt").write_text(lines.removesuffix(test))
    (folder / "annotations/test.txt").write_text(test)
    (folder / "annotations/list.txt").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 24 small pictures with one circle or square each, with masks; 16 or so of them for training."""
    root = tmp_path_factory.mktemp("shapes")
    records = root / "records"
    convert(
        data_dir=draw_pets(root / "raw"), output_dir=records, layout="pets", target="bodies", val_fraction=0.2, shards=3
    )
    return records
