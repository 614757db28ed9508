"""The picture of the README: accuracy against teacher forwards, and loading against other loaders.

The figures are read from the tables of docs/results, so the picture says what they say. It is four SVG files, wide and
narrow, light and dark, which the README's ``<picture>`` chooses among. ``python -m docs.site.picture`` writes them;
tests/system/test_site.py compares them with the tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Colors(NamedTuple):
    """Of one of the two grounds that a page can have; the ground itself is the page's."""

    ink: str
    quiet: str
    line: str
    band: str
    ours: str
    other: str


THEMES = {
    "light": Colors("#1b1f24", "#59636e", "#d1d9e0", "#eef1f4", "#0969da", "#bc4c00"),
    "dark": Colors("#e6edf3", "#9198a1", "#3d444d", "#232a33", "#58a6ff", "#f0883e"),
}


class Student(NamedTuple):
    """A row of the table of accuracies: percent, and how often the teacher was asked."""

    name: str
    top1: float
    margin: float
    forwards: int


class Ratio(NamedTuple):
    """A row of the table of loaders: ours over theirs, with the least and the largest of one run."""

    peer: str
    median: float
    least: float
    largest: float


def read_table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading or a bold beginning of a paragraph, its own first row left out."""
    lines = text[text.index(heading) :].splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def read_students() -> list[Student]:
    """What the same student reaches by labels, by fixed logits, by stored views, and with the teacher at hand."""
    found = []
    for name, top1, *_, forwards, _bytes in read_table(
        (RESULTS / "accuracy.md").read_text(), "## Stored views against"
    ):
        mean, _, margin = top1.partition(" +- ")
        found.append(Student(name, float(mean), float(margin), int(forwards.replace(",", ""))))
    return found


def read_ratios() -> list[Ratio]:
    """How fast ours loads, as a multiple of each peer."""
    found = []
    for peer, ratio, *_ in read_table((RESULTS / "performance.md").read_text(), "**Loading**"):
        numbers = re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", ratio)
        assert numbers is not None, ratio
        found.append(Ratio(peer, *map(float, numbers.groups())))
    return found


@dataclass
class Canvas:
    """SVG elements in one set of colors."""

    colors: Colors

    def __post_init__(self) -> None:
        self.elements: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, color: str, size: float = 13, anchor: str = "start", weight: int = 400
    ) -> None:
        """A line of text that begins, is centered or ends at x."""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{color}">{escape(text)}</text>'
        )

    def line(
        self, begin: tuple[float, float], end: tuple[float, float], *, color: str, width: float = 1, dash: str = ""
    ) -> None:
        """A straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.elements.append(
            f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{color}" '
            f'stroke-width="{width:g}"{dashes}/>'
        )

    def rect(self, x: float, y: float, width: float, height: float, *, color: str, radius: float = 0) -> None:
        """A filled rectangle."""
        self.elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" fill="{color}"/>'
        )

    def dot(self, x: float, y: float, *, color: str, radius: float = 5) -> None:
        """A filled circle."""
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}"/>')

    def path(self, points: Sequence[tuple[float, float]], *, color: str, width: float = 2) -> None:
        """A line through points."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="{width:g}"/>')


class Box(NamedTuple):
    """Where a panel lies, its titles included."""

    left: float
    top: float
    width: float
    height: float


def draw_accuracy(canvas: Canvas, box: Box, students: Sequence[Student]) -> None:
    """Top-1 against teacher forwards on a logarithmic axis, with the labels' band of 95 % behind."""
    colors = canvas.colors
    _titles(
        canvas,
        box,
        "Accuracy against teacher forwards",
        ["The same student at equal steps: CIFAR-10,", "5,000 training images, 3 seeds, bars: 95 %"],
    )
    left, right = box.left + 40, box.left + box.width - 14
    top, bottom = box.top + 74, box.top + box.height - 46
    low, high = 58.0, 70.0
    first, last = math.log10(3_500), math.log10(700_000)

    def place(forwards: float, top1: float) -> tuple[float, float]:
        across = (math.log10(forwards) - first) / (last - first)
        return left + across * (right - left), bottom - (top1 - low) / (high - low) * (bottom - top)

    for tick in range(int(low), int(high) + 1, 4):
        y = place(10_000, tick)[1]
        canvas.line((left, y), (right, y), color=colors.line)
        canvas.text(
            left - 8, y + 4, f"{tick} %" if tick == high else str(tick), color=colors.quiet, anchor="end", size=12
        )
    for forwards in sorted({student.forwards for student in students if student.forwards}):
        x = place(forwards, low)[0]
        canvas.line((x, bottom), (x, bottom + 5), color=colors.quiet)
        canvas.text(x, bottom + 19, f"{round(forwards / 1000)}k", color=colors.quiet, anchor="middle", size=12)
    canvas.text(
        (left + right) / 2,
        bottom + 38,
        "teacher forwards for all three students",
        color=colors.quiet,
        anchor="middle",
        size=12,
    )

    labels = next(student for student in students if student.forwards == 0)
    upper, lower = place(10_000, labels.top1 + labels.margin)[1], place(10_000, labels.top1 - labels.margin)[1]
    canvas.rect(left, upper, right - left, lower - upper, color=colors.band)
    y = place(10_000, labels.top1)[1]
    canvas.line((left, y), (right, y), color=colors.quiet, dash="5 4")
    canvas.text(right, lower + 15, f"{labels.name}: {labels.top1:.1f}, no teacher", color=colors.quiet, anchor="end")

    views = [student for student in students if "stored view" in student.name]
    canvas.path([place(student.forwards, student.top1) for student in views], color=colors.ours)
    for student in students:
        if student.forwards == 0:
            continue
        color = colors.ours if student in views else colors.other
        x, y = place(student.forwards, student.top1)
        for bound in (student.top1 - student.margin, student.top1 + student.margin):
            canvas.line((x, y), (x, place(student.forwards, bound)[1]), color=color, width=1.5)
        canvas.dot(x, y, color=color)
        _name_student(canvas, student, (x, y), place(student.forwards, student.top1 + student.margin)[1], color)


def _name_student(canvas: Canvas, student: Student, point: tuple[float, float], bar: float, color: str) -> None:
    """Beside the point, or over its bar, where the neighbors leave room."""
    x, y = point
    name = student.name.replace(" stored view", " view")
    figure = f"{student.top1:.1f}"
    if name.startswith("online"):
        canvas.text(x + 8, y - 36, "teacher in the loop", color=color, anchor="end", weight=600)
        canvas.text(x + 8, y - 20, figure, color=color, anchor="end", weight=600)
    elif name.startswith("fixed"):
        canvas.text(x - 6, bar - 23, "fixed logits", color=color)
        canvas.text(x - 6, bar - 8, figure, color=color)
    elif name == "1 view":
        canvas.text(x + 10, y + 5, f"{name} {figure}", color=color)
    else:
        weight = 600 if name == "30 views" else 400
        canvas.text(x + 8, y + 20, name, color=color, weight=weight)
        canvas.text(x + 8, y + 35, figure, color=color, weight=weight)


def draw_loading(canvas: Canvas, box: Box, ratios: Sequence[Ratio], *, names_above: bool) -> None:
    """Bars of ours over theirs with the spread of one run, and the line at which both are equal."""
    colors = canvas.colors
    _titles(
        canvas,
        box,
        "Loading: our speed as a multiple of theirs",
        ["Photographs to batches of 224 px crops, 2 cores, no GPU;", "ours joined with logits and checked"],
    )
    left, right = box.left + (0 if names_above else 196), box.left + box.width - 44
    top, bottom = box.top + 74, box.top + box.height - 46
    thick, step = 15.0, (bottom - top) / len(ratios)
    rows = [top + (row + 0.5) * step + (9 if names_above else 0) for row in range(len(ratios))]
    # Where names stand over the bars, lines would cross them.
    pieces = [(y - thick / 2 - 2, y + thick / 2 + 4) for y in rows] if names_above else [(top, bottom)]
    most = math.ceil(max(ratio.largest for ratio in ratios))
    scale = (right - left) / most
    for tick in range(most + 1):
        for begin, end in pieces if tick else ():
            canvas.line((left + tick * scale, begin), (left + tick * scale, end), color=colors.line)
        name = f"{tick}x" if tick else "0"
        canvas.text(left + tick * scale, bottom + 19, name, color=colors.quiet, anchor="middle", size=12)
    for y, ratio in zip(rows, ratios, strict=True):
        if names_above:
            canvas.text(left, y - thick / 2 - 5, ratio.peer, color=colors.ink, size=12.5)
        else:
            lines = _break(ratio.peer)
            for number, line in enumerate(lines):
                height = y + 4.5 + 15 * (number - (len(lines) - 1) / 2)
                canvas.text(left - 12, height, line, color=colors.ink, size=12.5, anchor="end")
        canvas.rect(left, y - thick / 2, ratio.median * scale, thick, color=colors.ours, radius=2)
        canvas.line((left + ratio.least * scale, y), (left + ratio.largest * scale, y), color=colors.ink, width=1.5)
        end = left + ratio.largest * scale + 8
        canvas.text(end, y + 4.5, f"{ratio.median:.2f}", color=colors.ink, weight=600)
    for begin, end in pieces:
        canvas.line(
            (left + scale, begin), (left + scale, end), color=colors.other, width=2, dash="" if names_above else "5 4"
        )
    canvas.text(left + scale, bottom + 38, "as fast as the peer", color=colors.other, anchor="middle", size=12)


def _titles(canvas: Canvas, box: Box, title: str, lines: Sequence[str]) -> None:
    canvas.text(box.left, box.top + 16, title, color=canvas.colors.ink, size=16, weight=600)
    for number, line in enumerate(lines):
        canvas.text(box.left, box.top + 37 + 17 * number, line, color=canvas.colors.quiet, size=12.5)


def _break(name: str) -> list[str]:
    """A peer's name in at most two lines of about the same length, broken between words."""
    places = [match.start() for match in re.finditer(" ", name)] if len(name) > 26 else []
    if not places:
        return [name]
    middle = min(places, key=lambda place: abs(2 * place - len(name)))
    return [name[:middle], name[middle + 1 :]]


def describe(students: Sequence[Student], ratios: Sequence[Ratio]) -> str:
    """The picture in words, for those who cannot see it."""
    accuracy = "; ".join(f"{one.name} {one.top1:.1f} % top-1 ({one.forwards:,} teacher forwards)" for one in students)
    loading = "; ".join(f"{ratio.median:.2f} times {ratio.peer}" for ratio in ratios)
    return f"Accuracy: {accuracy}. Loading speed: {loading}."


def draw(theme: str, *, narrow: bool) -> str:
    """One of the four files."""
    students, ratios = read_students(), read_ratios()
    canvas = Canvas(THEMES[theme])
    if narrow:
        width, height = 400, 880
        draw_accuracy(canvas, Box(4, 4, 392, 420), students)
        draw_loading(canvas, Box(4, 456, 392, 420), ratios, names_above=True)
    else:
        width, height = 960, 420
        draw_accuracy(canvas, Box(4, 4, 460, 412), students)
        draw_loading(canvas, Box(500, 4, 456, 412), ratios, names_above=False)
    label = escape(describe(students, ratios), quote=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    return "\n".join([f'{head}font-family="{FONT}" role="img" aria-label="{label}">', *canvas.elements, "</svg>\n"])


def draw_all() -> Iterator[tuple[Path, str]]:
    """Each file and its text."""
    for theme in THEMES:
        for narrow in (False, True):
            yield IMAGES / f"gains-{'narrow-' if narrow else ''}{theme}.svg", draw(theme, narrow=narrow)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for path, text in draw_all():
        path.write_text(text)
        print(path.relative_to(ROOT))
