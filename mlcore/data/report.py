"""Reports: one HTML file that holds its charts, tables and pictures.

The file needs no script and no network (its content security policy forbids both), follows the reader's light or dark
mode, prints, and has the same bytes whenever it has the same content.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data import charts
from mlcore.runtime.outputs import atomic_file

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL import Image

log = logging.getLogger(__name__)

MAX_PICTURE_PIXELS = 50_000_000  # a larger picture is not decoded for a report


class Report:
    """A report that is built from top to bottom and then written.

    What is added before the first section stands below the introduction. Every text is escaped. The methods return the
    report, so that calls can be chained:

        Report("Conversion", "What was read.").section("Classes").bars("Boxes by class", {"cat": 3}).write(path)
    """

    def __init__(self, title: str, intro: str = "") -> None:
        self.title = title
        self.intro = intro
        self._sections: list[dict[str, Any]] = [{"heading": "", "anchor": "", "text": "", "blocks": []}]

    def section(self, heading: str, text: str = "") -> Report:
        """Starts a section; `text` may hold several paragraphs, separated by an empty line."""
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        taken = {section["anchor"] for section in self._sections}
        anchor, count = slug, 1
        while anchor in taken:
            count += 1
            anchor = f"{slug}-{count}"
        self._sections.append({"heading": heading, "anchor": anchor, "text": text, "blocks": []})
        return self

    def facts(self, values: Mapping[str, Any]) -> Report:
        """The few numbers that a reader looks for first, large: name and value."""
        return self._add("facts", facts=[(name, _cell(value)[0]) for name, value in values.items()])

    def text(self, text: str) -> Report:
        """Paragraphs, separated by an empty line."""
        return self._add("text", text=text)

    def table(
        self, headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", limit: int | None = 500
    ) -> Report:
        """A table; numbers are set right-aligned.

        Args:
            headers: Heads of the columns.
            rows: Values of each row, as many as there are headers.
            caption: Stands above the table.
            limit: Rows that are shown; how many more there are is said below. None: all.

        Raises:
            ValueError: A row's length is not that of `headers`.
        """
        every = [[_cell(value) for value in row] for row in rows]
        for index, row in enumerate(every):
            if len(row) != len(headers):
                raise ValueError(f"table {caption!r}, row {index}: {len(row)} values, expected {len(headers)}")
        shown = every if limit is None else every[:limit]
        numeric = [bool(shown) and all(row[column][1] for row in shown) for column in range(len(headers))]
        heads = list(zip(headers, numeric, strict=True))
        return self._add("table", caption=caption, headers=heads, rows=shown, hidden=len(every) - len(shown))

    def bars(self, caption: str, values: Mapping[str, float]) -> Report:
        """Horizontal bars, one for each label, in the order given."""
        return self._figure(caption, charts.bars(values))

    def histogram(self, caption: str, values: Iterable[float], bins: int = 30, x_label: str = "") -> Report:
        """How often values of each size occur: at most about `bins` bins of a round width."""
        return self._figure(caption, charts.histogram(values, bins, x_label))

    def lines(
        self,
        caption: str,
        series: Mapping[str, Sequence[tuple[float, float]]],
        x_label: str = "",
        y_label: str = "",
    ) -> Report:
        """One line of (x, y) points for each name; gaps where a value is not finite."""
        return self._figure(caption, charts.lines(series, x_label, y_label))

    def images(
        self, caption: str, images: Iterable[tuple[Image.Image | Path | str, str]], width: int = 320, quality: int = 80
    ) -> Report:
        """A sheet of pictures, each with its text below it.

        Pictures are made smaller to fit `width` (never larger) and stored as JPEG, or as PNG if they have few colours
        or are transparent. One that cannot be read is shown as its reason.

        Args:
            caption: Stands above the sheet.
            images: Pairs of a Pillow image, or a path of one, and its text (also its alternative text).
            width: Bound of each picture's width and, twice that, of its height, in pixels.
            quality: Of JPEG, 1 to 95.
        """
        pictures = []
        for image, text in images:
            try:
                pictures.append((*_data_uri(image, width, quality), text, ""))
            except (OSError, ValueError, SyntaxError) as error:
                log.warning("report: picture %s cannot be shown: %s", image, error)
                pictures.append(("", 0, 0, text, f"cannot be shown: {error}"))
        return self._add("images", caption=caption, pictures=pictures, width=width)

    def html(self) -> str:
        """The page."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mlcore.data", ""),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["paragraphs"] = lambda text: [part for part in re.split(r"\n\s*\n", text.strip()) if part]
        sections = [section for section in self._sections if section["heading"] or section["blocks"]]
        headings = [section for section in sections if section["heading"]]
        return environment.get_template("report.html").render(
            title=self.title, intro=self.intro, sections=sections, contents=headings if len(headings) > 2 else []
        )

    def write(self, path: Path | str) -> Path:
        """Writes the page to `path`, whole or not at all."""
        path = Path(path)
        with atomic_file(path) as temporary:
            temporary.write_bytes(self.html().encode(errors="replace"))  # file names need not be text
        return path

    def _figure(self, caption: str, chart: Markup) -> Report:
        return self._add("figure", caption=caption, chart=chart)

    def _add(self, kind: str, **content: Any) -> Report:
        self._sections[-1]["blocks"].append({"kind": kind, **content})
        return self


def _cell(value: Any) -> tuple[str, bool]:
    """The text of a value, and whether it is a number."""
    if value is None:
        return "", False
    if isinstance(value, bool):
        return ("yes" if value else "no"), False
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # a scalar of numpy
        value = value.item()
    if isinstance(value, (int, float)):
        return charts.number(value), True
    return str(value), False


def _data_uri(source: Image.Image | Path | str, width: int, quality: int) -> tuple[str, int, int]:
    """A picture as a data URI, with its width and height in pixels."""
    from PIL import Image, ImageOps

    image = source if isinstance(source, Image.Image) else Image.open(source)
    if image.width * image.height > MAX_PICTURE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, at most {MAX_PICTURE_PIXELS:,}")
    if image is not source:
        image = ImageOps.exif_transpose(image)
    flat = image.mode in ("1", "P", "PA")
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would clip, so spread over what there is
        low, high = image.convert("F").getextrema()
        scale = 255 / ((float(high) - float(low)) or 1.0)  # type: ignore[arg-type]
        image = image.convert("F").point(lambda value: value * scale - float(low) * scale).convert("L")  # type: ignore[arg-type]
    image = image.convert("RGBA" if transparent else "RGB")
    if image.width > width or image.height > 2 * width:
        image.thumbnail((width, 2 * width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if flat or transparent:
        if flat and not transparent:
            image = image.quantize(256)
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
