"""Makes the pictures of the project's README from what a quickstart left.

    python -m examples.quickstart.pictures --quickstart=build/quickstart --output-dir=docs/images

The part of the report is taken by a browser without a window; without Chromium it is left out.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from examples.quickstart import shapes
from examples.quickstart.report import found_boxes
from mlcore.detection.draw import draw_boxes

LARGEST_BYTES = 150_000
COLUMNS, ROWS = 4, 2
CELL = (320, 240)
GAP = 6
PAGE = (960, 1250)  # pixels of the report's part: heading, data, sizes


def save(image: Image.Image, path: Path) -> None:
    """As JPEG, in the best quality that keeps it small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 30, -5):
        image.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= LARGEST_BYTES:
            break
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size / 1000:.0f} kB")


def prediction_sheet(quickstart: Path) -> Image.Image:
    """Held-out pictures with the boxes that the model found."""
    folder = quickstart / "raw" / shapes.FOLDER / "JPEGImages"
    images = json.loads((quickstart / "predictions" / "predictions.json").read_text())["images"]
    # Of one size, with several shapes in each, so that the sheet has no holes.
    chosen = [image for image in images if (image["width"], image["height"]) == CELL and len(image["detections"]) > 2]
    sheet = Image.new("RGB", (COLUMNS * (CELL[0] + GAP) - GAP, ROWS * (CELL[1] + GAP) - GAP), "white")
    for index, image in enumerate(chosen[: COLUMNS * ROWS]):
        with Image.open(folder / image["file"]) as picture:
            drawn = draw_boxes(picture, found_boxes(image))
        sheet.paste(drawn, (index % COLUMNS * (CELL[0] + GAP), index // COLUMNS * (CELL[1] + GAP)))
    return sheet


def report_part(report: Path) -> Image.Image | None:
    """The top of the report as a browser shows it; None where there is no Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "shot.png")
        subprocess.run(
            [
                program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={PAGE[0]},{PAGE[1]}", f"--screenshot={shot}", report.resolve().as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(shot) as image:
            return image.convert("RGB")


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("build/quickstart"), help="its output directory")
    parser.add_argument("--output-dir", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    save(prediction_sheet(arguments.quickstart), arguments.output_dir / "predictions.jpg")
    part = report_part(arguments.quickstart / "report.html")
    if part is None:
        print("no Chromium: the picture of the report is left out")
    else:
        save(part, arguments.output_dir / "report.jpg")


if __name__ == "__main__":
    main()
