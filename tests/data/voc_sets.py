"""Small data sets in the layouts of Pascal VOC and Oxford-IIIT Pet, with real files."""

import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(size=(64, 48), mode="RGB", seed=0, **options):
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).convert(mode)
    return encoded(coarse, options.pop("kind", "JPEG"), **options)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def box(name="cat", corners=(5, 6, 20, 30), flags=True, difficult=0):
    xmin, ymin, xmax, ymax = corners
    extra = f"<pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>" if flags else ""
    return (
        f"<object><name>{name}</name>{extra}<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
        f"<ymax>2</ymax></bndbox></part><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax>"
        f"<ymax>{ymax}</ymax></bndbox></object>"
    )


def annotation(*objects, size=(64, 48), depth=3, filename="", declaration=True, more="", size_last=False):
    width, height = size or (0, 0)
    extent = f"<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>" if size else ""
    head = '<?xml version="1.0"?>\n' if declaration else ""
    name = f"<filename>{filename}</filename>" if filename else ""
    parts = [*objects, extent] if size_last else [extent, *objects]
    return f"{head}<annotation>{name}{more}{''.join(parts)}</annotation>\n"


class VocSet:
    """A folder in the layout of VOC that tests fill."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("JPEGImages", "Annotations"):
            (root / name).mkdir(parents=True)

    def add(self, name, xml=None, image=None, extension=".jpg"):
        xml = annotation(box(), filename=f"{name}{extension}") if xml is None else xml
        if image is not None or extension:
            data = jpeg(seed=sum(os.fsencode(name))) if image is None else image
            (self.root / "JPEGImages" / f"{name}{extension}").write_bytes(data)
        if xml:
            (self.root / "Annotations" / f"{name}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
        return self

    def fill(self, count, prefix="good"):
        for number in range(count):
            self.add(f"{prefix}_{number:03}")
        return self

    def lists(self, **lists):
        folder = self.root / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        for split, names in lists.items():
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        return self


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def rejects_of(folder):
    with (folder / "rejects.csv").open(newline="") as file:
        return list(csv.DictReader(file))
