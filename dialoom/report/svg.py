"""Small drawings as inline SVG: a bar with its interval, a line chart, the shape of a tree. No library, no script.

Colours are classes of the page's style sheet, so a drawing follows light and dark; nothing here sets a style attribute,
which the page's security policy would refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dialoom.report.safe import visible

Point = tuple[float, float]
MAX_POINTS = 300   # more than a chart has pixels for


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, its points in order of x, and the number of its colour class."""

    name: str
    points: Sequence[Point]
    color: int = 0


@dataclass(frozen=True)
class Node:
    """One turn in a drawing of a tree: where a click leads, the parent's place in the list, and what to say of it."""

    anchor: str
    parent: int | None
    label: str
    color: int = 0
    verdict: str = ""
    mark: str = ""


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers spread over [low, high], at least one of them, about as many as asked."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * size for size in (1, 2, 2.5, 5, 10) if unit * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def bar(value: float, low: float | None, high: float | None, *, points: Iterable[float] = (), start: float = 0.0,
        end: float = 1.0, kind: str = "") -> Markup:
    """A horizontal bar from zero to `value` with the interval as a whisker and one dot for each seed.

    Args:
        start, end: the range the drawing spans.
        kind: a class for the bar's colour.
    """
    def at(number: float) -> str:
        return f"{100 * (min(max(number, start), end) - start) / (end - start):.2f}"

    zero, tip = at(0.0), at(value)
    left, width = min(float(zero), float(tip)), abs(float(tip) - float(zero))
    parts = [Markup('<rect class="track" width="100" height="16" rx="2"/>'),
             Markup('<rect class="fill {}" x="{:.2f}" width="{:.2f}" height="16" rx="1"/>').format(kind, left, width)]
    if start < 0:
        parts.append(Markup('<path class="zero" d="M{} 0v16"/>').format(zero))
    parts += [Markup('<path class="dot" d="M{} 12v3"/>').format(at(point)) for point in points]
    if low is not None and high is not None:
        parts.append(Markup('<path class="whisker" d="M{0} 8H{1}M{0} 4.5v7M{1} 4.5v7"/>').format(at(low), at(high)))
    return Markup('<svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
                  ).format(Markup("").join(parts))


def line_chart(title: str, series: Sequence[Series], *, x_title: str = "step") -> Markup:
    """A chart of lines over one horizontal axis; a value that is not finite breaks its line.

    Screen readers get the title and the last value of each line.
    """
    finite = [point for one in series for point in one.points if all(map(math.isfinite, point))]
    width, height, left, right, top, bottom = 380, 210, 46, 12, 10, 34
    if not finite:
        return Markup('<svg class="chart" viewBox="0 0 {0} 40" role="img" aria-label="{1}: no finite value">'
                      '<text x="8" y="24">no finite value</text></svg>').format(width, visible(title))
    x_low, x_high = _padded([x for x, _ in finite], 0.0)
    y_low, y_high = _padded([y for _, y in finite], 0.04)

    def x_at(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def y_at(y: float) -> float:
        return height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = []
    for tick in ticks(y_low, y_high):
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{}</text>').format(
            left, y_at(tick), width - right, left - 6, y_at(tick) + 4, _number(tick)))
    for tick in ticks(x_low, x_high):
        parts.append(Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(
            x_at(tick), height - bottom + 16, _number(tick)))
    parts.append(Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(
        (left + width - right) / 2, height - 3, visible(x_title)))
    for one in series:
        spots = [(x_at(x), y_at(y)) if math.isfinite(x) and math.isfinite(y) else None for x, y in _thinned(one.points)]
        parts.append(Markup('<path class="line c{}" d="{}"><title>{}</title></path>').format(
            one.color, _path(spots), visible(one.name)))
    ends = ", ".join(f"{one.name} ends at {_number(one.points[-1][1])}" for one in series if one.points)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, visible(f"{title}: {ends}"), Markup("").join(parts))


def _padded(numbers: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    room = (high - low) * share or (0.0 if high > low else max(abs(high) * 0.1, 1e-6))
    return low - room, high + room


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = math.ceil(len(points) / MAX_POINTS)
    return [*points[:-1:step], points[-1]] if step > 1 else points


def _path(spots: Iterable[Point | None]) -> str:
    text, pen_up = "", True
    for spot in spots:
        if spot is not None:   # a lone point still shows: the line's round cap
            text += f"{'M' if pen_up else 'L'}{spot[0]:.1f} {spot[1]:.1f}" + ("h0" if pen_up else "")
        pen_up = spot is None
    return text


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def tree_map(nodes: Sequence[Node], marks: Mapping[str, str]) -> Markup:
    """The shape of a tree, first turns on the left: a dot for each turn (hollow where wrong), linked to its text.

    Args:
        nodes: in reading order, each branch to its end.
        marks: mark of a node -> class of the edge that leads to it.
    """
    depth: list[int] = []
    for node in nodes:
        depth.append(0 if node.parent is None else depth[node.parent] + 1)
    inner = {node.parent for node in nodes}
    row: dict[int, float] = {}
    leaves = 0
    for place in range(len(nodes)):
        if place not in inner:
            row[place], leaves = float(leaves), leaves + 1
    for place in reversed(range(len(nodes))):
        if place in inner:
            below = [row[child] for child, node in enumerate(nodes) if node.parent == place]
            row[place] = (below[0] + below[-1]) / 2
    across = min(92.0, 600.0 / max(1, max(depth)))
    spots = [(16 + across * depth[place], 14 + 20 * row[place]) for place in range(len(nodes))]
    parts = []
    for node, (x, y) in zip(nodes, spots, strict=True):
        if node.parent is not None:
            from_x, from_y = spots[node.parent]
            middle = (from_x + x) / 2
            curve = f"M{from_x:.0f} {from_y:.0f}C{middle:.0f} {from_y:.0f} {middle:.0f} {y:.0f} {x:.0f} {y:.0f}"
            parts.append(Markup('<path class="edge {}" d="{}"/>').format(marks.get(node.mark, ""), curve))
    for node, (x, y) in zip(nodes, spots, strict=True):
        kind = f"s{node.color} {node.verdict}".rstrip()
        parts.append(Markup('<a href="#{}" tabindex="-1"><circle class="{}" cx="{:.0f}" cy="{:.0f}" r="6.5"/>'
                            "<title>{}</title></a>").format(node.anchor, kind, x, y, visible(node.label)))
    width, height = 32 + across * max(depth), 28 + 20 * max(0, leaves - 1)
    return Markup('<svg class="map" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" '
                  'aria-hidden="true">{2}</svg>').format(width, height, Markup("").join(parts))
