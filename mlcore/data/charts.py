"""Charts as inline SVG: bars, histograms and lines.

The drawing area is laid out in percent and text in pixels, so that a chart fills a wide screen and is still legible on
a phone. Axis labels stand outside the SVG's own box (`overflow: visible`); the page's style leaves room for them.
Colours come from the page's CSS variables, so that dark mode and print follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

HEIGHT = 220  # pixels of the drawing area of histograms and lines
SERIES_COLOURS = 8  # the page's style defines --series-0 ... --series-7
MAX_POINTS = 600  # per line; more cannot be seen and only make the file large


def number(value: float) -> str:
    """A number for people: thousands separated, as many decimals as matter."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (math.isfinite(value) and float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1 else f"{value:.4g}"


def _tick(value: float) -> str:
    return number(value) if abs(value) >= 1000 else f"{value:.4g}"


def _coordinate(value: float) -> str:
    """At most two decimals, no trailing zeros: short and the same on every machine."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _percent(value: float) -> str:
    return _coordinate(100 * value) + "%"


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 x 10^k that is not below `rough`."""
    if rough <= 0 or not math.isfinite(rough):
        return 1.0
    exponent = math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        step = float(f"{factor}e{exponent}")
        if step >= rough * (1 - 1e-9):
            return step
    return float(f"1e{exponent + 1}")


def _ticks(low: float, high: float, count: int, least: float = 0.0) -> list[float]:
    """Round values, at least `least` apart, that cover low..high, about `count` of them.

    The first is <= low and the last >= high.
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    step = max(_nice_step((high - low) / count), least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in map(float, values) if math.isfinite(value)]


def bars(values: Mapping[str, float]) -> Markup:
    """Horizontal bars, one row of a table for each label, so that long names wrap and a screen reader reads them."""
    if not values:
        return Markup('<p class="empty">Nothing to show.</p>')
    top = max([0.0, *_finite(values.values())]) or 1.0
    row = Markup(
        '<tr><th scope="row">{label}</th><td class="bar"><svg width="100%" height="14" aria-hidden="true">'
        '<rect width="{width}" height="14" rx="2" fill="var(--series-0)"/></svg></td>'
        '<td class="number">{value}</td></tr>'
    )
    rows = (
        row.format(
            label=label,
            value=number(value),
            width=_percent(max(0.0, value) / top if math.isfinite(value) else 0.0),
        )
        for label, value in values.items()
    )
    return Markup('<table class="bars"><tbody>{}</tbody></table>').format(Markup("").join(rows))


def histogram(values: Iterable[float], bins: int = 30, x_label: str = "") -> Markup:
    """A histogram with at most about `bins` bins of a round width; values that are not finite are counted below it."""
    given = list(values)
    finite = sorted(_finite(given))
    if not finite:
        return Markup('<p class="empty">No values.</p>')
    low, high = finite[0], finite[-1]
    whole = all(value.is_integer() for value in finite)
    if whole:
        width = _nice_step(max(1.0, (high - low) / max(1, bins)))  # a bin narrower than the unit leaves gaps
    else:
        width = _nice_step((high - low) / max(1, bins)) if high > low else _nice_step(abs(low) / 10 or 1.0)
    first = math.floor(low / width + 1e-9)
    counts = [0] * (math.floor(high / width + 1e-9) - first + 1)
    for value in finite:
        counts[min(len(counts) - 1, max(0, math.floor(value / width + 1e-9) - first))] += 1
    # Whole numbers that have a bin each stand in the middle of their bins.
    start = first * width - (0.5 if whole and width == 1 else 0.0)
    span = len(counts) * width
    y_ticks = _ticks(0, max(counts), 4, least=1)
    top = y_ticks[-1]
    parts = [_y_axis(y_ticks, 0.0, top)]
    gap = 0.08 / len(counts)
    for index, count in enumerate(counts):
        if count:
            parts.append(
                Markup(
                    '<rect x="{}" y="{}" width="{}" height="{}" fill="var(--series-0)"><title>{}: {}</title></rect>'
                ).format(
                    _percent(index / len(counts) + gap),
                    _percent(1 - count / top),
                    _percent(1 / len(counts) - 2 * gap),
                    _percent(count / top),
                    _bin(first + index, width, single=whole and width == 1),
                    number(count),
                )
            )
    x_ticks = [tick for tick in _ticks(start, start + span, 6) if start <= tick <= start + span * (1 + 1e-9)]
    if whole and width == 1:
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    parts.append(_x_axis(x_ticks, start, start + span, x_label))
    middle = len(finite) // 2
    median = finite[middle] if len(finite) % 2 else (finite[middle - 1] + finite[middle]) / 2
    spread = f"from {number(low)} to {number(high)}, median {number(median)}" if high > low else f"all {number(low)}"
    summary = f"{number(len(finite))} values, {spread}"
    if len(finite) < len(given):
        summary += f"; {number(len(given) - len(finite))} not finite, not shown"
    return _plot(parts, f"Histogram of {summary}.", x_label) + Markup('<p class="note">{}.</p>').format(summary)


def _bin(index: int, width: float, *, single: bool) -> str:
    low, high = (number(float(f"{edge * width:.12g}")) for edge in (index, index + 1))
    return low if single else f"{low} to {high}"


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str = "", y_label: str = "") -> Markup:
    """Lines over a common x axis, with a legend; a value that is not finite breaks its line."""
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    everything = [point for points in finite.values() for point in points]
    if not everything:
        return Markup('<p class="empty">No values.</p>')
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    y_low, y_high = min(ys), max(ys)
    if y_low > 0 and y_low < 0.5 * y_high:
        y_low = 0.0  # a short way down to zero: show it, so that heights can be compared
    y_ticks = _ticks(y_low, y_high, 4)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    x_low, x_high = min(xs), max(xs)
    if not x_high > x_low:
        x_low, x_high = x_low - 1, x_high + 1
    elif 0 < x_low < 0.2 * x_high:
        x_low = 0.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - x_low) / (x_high - x_low), 1 - (y - y_low) / (y_high - y_low)

    parts = [_y_axis(y_ticks, y_low, y_high)]
    x_ticks = [tick for tick in _ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    parts.append(_x_axis(x_ticks, x_low, x_high, x_label))
    for index, (name, points) in enumerate(series.items()):
        colour = f"var(--series-{index % SERIES_COLOURS})"
        for piece in _pieces(points):
            placed = [place(x, y) for x, y in _thin(piece)]
            path = " ".join(f"{_coordinate(1000 * x)},{_coordinate(1000 * y)}" for x, y in placed)
            # An SVG inside stretches the points with the page; the stroke keeps its width.
            parts.append(
                Markup(
                    '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
                    '<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-linejoin="round" '
                    'vector-effect="non-scaling-stroke"><title>{}</title></polyline></svg>'
                ).format(path, colour, name)
            )
            if len(placed) <= 30:
                dot = Markup('<circle cx="{}" cy="{}" r="3" fill="{}"><title>{}: {}, {}</title></circle>')
                parts += [
                    dot.format(_percent(px), _percent(py), colour, name, number(x), number(y))
                    for (px, py), (x, y) in zip(placed, _thin(piece), strict=True)
                ]
    key = Markup(
        '<li><svg width="14" height="14" aria-hidden="true"><rect y="5" width="14" height="4" rx="2" fill="{}"/></svg>'
        " {}{}</li>"
    )
    entries = [
        key.format(
            f"var(--series-{index % SERIES_COLOURS})",
            name,
            f" (last {number(finite[name][-1][1])})" if finite[name] else "",
        )
        for index, name in enumerate(series)
    ]
    legend = Markup('<ul class="legend">{}</ul>').format(Markup("").join(entries))
    axis = Markup('<p class="axis">{}</p>').format(y_label) if y_label else Markup("")
    names = ", ".join(series)
    return legend + axis + _plot(parts, f"Lines of {names}; {y_label or 'y'} over {x_label or 'x'}.", x_label)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches of a line between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((float(x), float(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about MAX_POINTS points: of each bucket the lowest and the highest, so that spikes stay to be seen."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        low, high = min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])
        kept += sorted({low, high})
    return [points[0], *kept, points[-1]]


def _y_axis(ticks: Sequence[float], low: float, high: float) -> Markup:
    piece = Markup(
        '<line x1="0" x2="100%" y1="{y}" y2="{y}" stroke="var(--grid)"/>'
        '<text x="-8" y="{y}" dy="4" text-anchor="end">{text}</text>'
    )
    return Markup("").join(
        piece.format(y=_percent(1 - (tick - low) / (high - low)), text=_tick(tick)) for tick in ticks
    )


def _x_axis(ticks: Sequence[float], low: float, high: float, label: str) -> Markup:
    piece = Markup('<text x="{x}" y="100%" dy="18" text-anchor="middle">{text}</text>')
    parts = [piece.format(x=_percent((tick - low) / (high - low)), text=_tick(tick)) for tick in ticks]
    parts.append(Markup('<line x1="0" x2="100%" y1="100%" y2="100%" stroke="var(--muted)"/>'))
    if label:
        parts.append(
            Markup('<text x="50%" y="100%" dy="38" text-anchor="middle" class="label">{}</text>').format(label)
        )
    return Markup("").join(parts)


def _plot(parts: Sequence[Markup], description: str, x_label: str) -> Markup:
    return Markup('<svg class="plot{}" role="img" aria-label="{}" height="{}">{}</svg>').format(
        " labelled" if x_label else "", description, HEIGHT, Markup("").join(parts)
    )
