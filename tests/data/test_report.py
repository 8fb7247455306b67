"""Reports are one HTML file that stands alone, whatever is put in."""

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.data import charts
from mlcore.data.report import Report

VOID = {"meta", "img"}
NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Every tag that is opened is closed in order; collects text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full_report() -> Report:
    report = Report("Title", "First paragraph.\n\nSecond paragraph.")
    report.facts({"images": 364, "share": 0.25, "path": "models/a/very/long/path/1", "done": True})
    report.section("Numbers", "Text.").bars("Boxes", {"RBC": 4155, "none": 0})
    report.histogram("Sizes", [1.5, 2.5, 2.6, 9.0], x_label="pixels")
    report.section("Curves").lines("Loss", {"train": [(0, 3.0), (10, 1.0)], "val": [(0, 3.5)]}, "step", "loss")
    report.section("Table").table(["file", "boxes"], [["a.xml", 1000], ["b.xml", 2]], caption="Rejects")
    report.section("Pictures").images("Sheet", [(Image.new("RGB", (640, 480), "red"), "a red one")], width=100)
    return report


def test_a_page_is_well_formed_and_says_what_was_put_in() -> None:
    page = Page(full_report().html())
    for words in ("Title", "Second paragraph.", "4,155", "0.2500", "yes", "a.xml", "1,000", "a red one", "pixels"):
        assert words in page.words
    assert [attributes["href"] for attributes in page.all("a")] == ["#numbers", "#curves", "#table", "#pictures"]
    assert [attributes["id"] for attributes in page.all("section") if "id" in attributes] == [
        "numbers", "curves", "table", "pictures",
    ]  # fmt: skip


def test_a_page_needs_no_network_and_no_script() -> None:
    page = Page(full_report().html())
    assert not page.all("script") and not page.all("link")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))  # type: ignore[union-attr]
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "url(" not in full_report().html() and "@import" not in full_report().html()


def test_every_text_is_escaped() -> None:
    report = Report(NASTY, NASTY).facts({NASTY: NASTY}).section(NASTY, NASTY).text(NASTY)
    report.table([NASTY], [[NASTY]], caption=NASTY).bars(NASTY, {NASTY: 1})
    report.histogram(NASTY, [1, 2], x_label=NASTY).lines(NASTY, {NASTY: [(0, 1)]}, NASTY, NASTY)
    report.images(NASTY, [(Image.new("RGB", (9, 9)), NASTY), (Path("nowhere.png"), NASTY)])
    html = report.html()
    assert "<script" not in html
    assert not Page(html).all("script")


def test_pictures_have_an_alternative_text_and_charts_a_label() -> None:
    page = Page(full_report().html())
    assert [image["alt"] for image in page.all("img")] == ["a red one"]
    for svg in page.all("svg"):
        if "plot" in (svg.get("class") or ""):
            assert svg["role"] == "img" and svg["aria-label"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = full_report().write(tmp_path / "a.html").read_bytes()
    second = full_report().write(tmp_path / "new" / "b.html").read_bytes()
    assert first == second
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def embedded(html: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(match))) for match in re.findall(r"data:image/\w+;base64,([^\"]+)", html)
    ]


def test_pictures_are_made_smaller_never_larger() -> None:
    pictures = [(Image.new("RGB", size), "") for size in ((4000, 2000), (30, 20), (100, 5000))]
    sizes = [image.size for image in embedded(Report("x").images("y", pictures, width=200).html())]
    assert sizes[:2] == [(200, 100), (30, 20)]
    assert sizes[2][1] <= 400


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_a_picture_of_any_mode_is_shown(mode: str) -> None:
    (image,) = embedded(Report("x").images("y", [(Image.new(mode, (40, 30)), "")]).html())
    image.load()
    assert image.size == (40, 30)


def test_16_bits_are_spread_over_what_there_is() -> None:
    ramp = Image.fromarray(np.linspace(1000, 3000, 64 * 64).reshape(64, 64).astype(np.uint16))
    (image,) = embedded(Report("x").images("y", [(ramp, "")]).html())
    low, high = image.convert("L").getextrema()
    assert low < 10 and high > 245  # type: ignore[operator]


def test_a_path_is_read_the_way_it_is_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (image,) = embedded(Report("x").images("y", [(tmp_path / "turned.jpg", "")]).html())
    assert image.size == (20, 60)


def test_a_picture_that_cannot_be_read_is_shown_as_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    html = Report("x").images("y", [(tmp_path / "broken.jpg", "text"), (tmp_path / "gone.png", "")]).html()
    assert "cannot identify" in html and "No such file" in html
    assert not Page(html).all("img")


def test_a_long_table_says_how_much_is_hidden() -> None:
    html = Report("x").table(["n"], [[index] for index in range(1700)], limit=500).html()
    assert "1,200 more rows" in html and '<td class="number">499</td>' in html and ">500<" not in html


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'files', row 1: 1 values, expected 2"):
        Report("x").table(["a", "b"], [[1, 2], [3]], caption="files")


def test_numpy_scalars_are_numbers() -> None:
    html = Report("x").table(["a", "b"], [[np.int64(12345), np.float32(0.5)]]).html()
    assert "12,345" in html and "0.5000" in html


@pytest.mark.parametrize(
    "values",
    [
        [],
        [3.0],
        [7] * 50,
        [0.1, 0.1],
        [math.nan, math.inf],
        [1, math.nan],
        [-5, 5],
        [1e-9, 2e-9],
        [0, 1e12],
        [-1e-300, 1e300],
    ],
)
def test_any_values_make_a_histogram(values: list[float]) -> None:
    Page(str(charts.histogram(values)))


def test_a_histogram_counts_every_value_once() -> None:
    values = [float(value) for value in np.random.default_rng(0).normal(100, 20, 2000)]
    counts = [int(count) for count in re.findall(r"<title>[^<]*: (\d+)</title>", charts.histogram(values))]
    assert sum(counts) == 2000
    assert len(counts) <= 31


def test_whole_numbers_have_a_bin_each() -> None:
    html = charts.histogram([1, 1, 2, 5])
    assert re.findall(r"<title>([^<]*)</title>", html) == ["1: 2", "2: 1", "5: 1"]
    assert "4 values, from 1 to 5, median 1.5" in html


@pytest.mark.parametrize(
    "points",
    [[], [(0, 1)], [(0, 1), (0, 1)], [(1, math.nan)], [(0, 1), (1, math.nan), (2, 3), (3, 3)], [(0, -1e30), (1, 1e30)]],
)
def test_any_points_make_lines(points: list[tuple[float, float]]) -> None:
    Page(str(charts.lines({"a": points, "b": []})))


def test_counts_are_whole_on_the_axis() -> None:
    assert "0.5" not in charts.histogram([1, 2, 3])


def test_a_gap_breaks_a_line() -> None:
    assert charts.lines({"a": [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2)]}).count("<polyline") == 2


def test_a_long_line_keeps_its_spikes_and_a_small_file() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    html = charts.lines({"loss": points})
    assert len(html) < 30_000
    (path,) = re.findall(r'points="([^"]*)"', html)
    heights = [float(pair.split(",")[1]) for pair in path.split()]
    assert min(heights) == pytest.approx(100)  # 9 of 10 on an axis to 10, from the top, in thousandths


def test_numbers_are_written_for_people() -> None:
    assert [charts.number(value) for value in (4886, 0.93127, 12345.6, 2.0, 1e-7, math.nan)] == [
        "4,886", "0.9313", "12,346", "2", "1e-07", "nan",
    ]  # fmt: skip


def test_importing_the_builder_loads_nothing_heavy() -> None:
    heavy = ("numpy", "PIL", "matplotlib", "tensorflow")
    code = f"import sys, mlcore.data.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
