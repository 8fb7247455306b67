"""`mlcore convert` against a loop as in TensorFlow's create_pet_tf_record, on data in the layout of Oxford-IIIT Pet.

    python benchmarks/convert.py [--images=3500] [--rounds=3] [--folder=DIR]

The peer (benchmarks/peers/pets_tfrecord.py) uses TensorFlow's writer, Pillow, lxml and hashlib in one process. As that
script it decodes the trimaps for heads too, which need none; the same loop without them is measured beside it. Whole
processes are timed in turn, imports included; medians of wall and CPU time. Wall time varies with the disk.
"""

import argparse
import io
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from processes import Cost, run, settle

PEER = Path(__file__).parent / "peers" / "pets_tfrecord.py"
WIDTH, HEIGHT = 500, 375
BREEDS = ("Abyssinian", "american_bulldog", "basset_hound", "Bengal", "keeshond", "Ragdoll", "yorkshire_terrier")
JPEG_BYTES = 88_000  # mean of the real data set


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=3500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the data set here and use it again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "pets"
        if not (folder / "annotations" / "trainval.txt").exists():
            make_pets(folder, options.images)
        images = sum(1 for _ in (folder / "images").iterdir())
        out = Path(temporary) / "records"
        for target in ("heads", "bodies"):
            compare(target, folder, images, out, options.rounds)
    return 0


def compare(target: str, data: Path, images: int, out: Path, rounds: int) -> None:
    ours = [
        sys.executable,
        "-m",
        "mlcore",
        "convert",
        f"--data-dir={data}",
        f"--output-dir={out}",
        f"--target={target}",
    ]
    peer_command = [sys.executable, str(PEER), str(data), str(out)]
    commands = {
        "peer, 1 process": [*peer_command, target],
        **({"peer, no trimaps": [*peer_command, "heads-lean"]} if target == "heads" else {}),
        "mlcore, 1 process": [*ours, "--workers=1"],
        "mlcore, 2 processes": [*ours, "--workers=2"],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            settle(out.parent, images * JPEG_BYTES // 1_000_000)
            costs[name].append(run(command))
    print(f"{target}, {images} images, median of {rounds}")
    medians = {name: Cost(*map(statistics.median, zip(*values, strict=True))) for name, values in costs.items()}
    peer = medians["peer, 1 process"]
    for name, cost in medians.items():
        wall = f"wall {cost.wall_s:6.2f} s ({images / cost.wall_s:6.0f} images/s, {peer.wall_s / cost.wall_s:4.1f} x)"
        cpu = f"CPU {cost.cpu_s:6.2f} s ({peer.cpu_s / cost.cpu_s:4.1f} x)"
        print(f"  {name:20} {wall}   {cpu}", flush=True)


def make_pets(folder: Path, images: int) -> None:
    """A data set of this size: 40 pictures and shapes, each file with bytes of its own."""
    print(f"making {images} images in {folder}", flush=True)
    rng = random.Random(1)
    generator = np.random.default_rng(1)
    for part in ("images", "annotations/xmls", "annotations/trimaps"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    motifs = [motif(generator, rng) for _ in range(40)]
    lines = []
    for number in range(images):
        breed = BREEDS[number % len(BREEDS)]
        name = f"{breed}_{number // len(BREEDS) + 1}"
        jpeg, trimap, box = motifs[number % len(motifs)]
        comment = f"picture {number}".encode()
        unique = jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
        (folder / "images" / f"{name}.jpg").write_bytes(unique)
        (folder / "annotations" / "trimaps" / f"{name}.png").write_bytes(trimap)
        (folder / "annotations" / "xmls" / f"{name}.xml").write_text(annotation(name, box))
        lines.append(f"{name} {number % len(BREEDS) + 1} 1 1\n")
    rng.shuffle(lines)
    (folder / "annotations" / "trainval.txt").write_text("".join(lines))


def motif(generator: np.random.Generator, rng: random.Random) -> tuple[bytes, bytes, tuple[int, int, int, int]]:
    """A JPEG of about 88 kB, a trimap with a ragged edge as in the real one, and the box of the head."""
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    pixels = np.asarray(coarse, np.int16)
    amplitude, data = 8, b""
    while len(data) < JPEG_BYTES:
        noise = generator.integers(-amplitude, amplitude + 1, pixels.shape, dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        data, amplitude = buffer.getvalue(), amplitude + 2
    trimap = Image.new("L", (WIDTH, HEIGHT), 2)
    draw = ImageDraw.Draw(trimap)
    centre = (rng.randint(180, 320), rng.randint(150, 220))
    angles = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    radius = 110 + 20 * np.sin(3 * angles + rng.random()) + generator.normal(0, 2, angles.shape)
    outline = [
        (centre[0] + r * np.cos(a) * 1.3, centre[1] + r * np.sin(a)) for r, a in zip(radius, angles, strict=True)
    ]
    draw.polygon(outline, fill=1)
    draw.line([*outline, outline[0]], fill=3, width=7)
    buffer = io.BytesIO()
    trimap.save(buffer, "PNG")
    return data, buffer.getvalue(), (centre[0] - 50, centre[1] - 90, centre[0] + 50, centre[1])


def annotation(name: str, box: tuple[int, int, int, int]) -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<annotation><folder>OXIIIT</folder><filename>{name}.jpg</filename><source><database>OXFORD-IIIT Pet Dataset"
        f"</database><annotation>OXIIIT</annotation><image>flickr</image></source><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size><segmented>0</segmented><object><name>cat</name>"
        f"<pose>Frontal</pose><truncated>0</truncated><occluded>0</occluded><bndbox>{sides}</bndbox>"
        f"<difficult>0</difficult></object></annotation>\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
