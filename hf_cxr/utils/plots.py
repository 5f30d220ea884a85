"""What all our pages share: colours, the style of figures, figures as PNG and as SVG that follows light and dark, and
numbers in words. `hf_cxr.explore` (a dataset) and `hf_cxr.evaluation.report` (an evaluation) draw with it.

Beside this file: the style sheet `plots.css`, and `plots.html`, the parts of a page that both have."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

NBSP = "\N{NO-BREAK SPACE}"
INK, MUTED, LINE, BACKGROUND = "#1d2731", "#5f6b78", "#d9dee4", "#ffffff"
MAIN, SECOND, THIRD, QUIET = "#0072b2", "#56b4e9", "#d55e00", "#b4bcc6"
VARIABLES = {
    **{INK: "ink", MUTED: "muted", LINE: "line", BACKGROUND: "background"},
    **{MAIN: "main", SECOND: "second", THIRD: "third", QUIET: "quiet"},
}
"""Colour of figures → its name in the style sheet of the page."""

WIDTH = 4.6
"""Inches. All figures have one width, so that their letters are of one size."""
STYLE = {
    "font.size": 10,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.labelsize": 9.5,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9.5,
    "figure.constrained_layout.w_pad": 0.01,
    "figure.constrained_layout.h_pad": 0.03,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "hf-cxr",
}
BASELINES = {
    "most_frequent": "the most frequent training text",
    "best_constant": "the constant of best BLEU-4",
    "best_findings": "the constant of best finding F1",
    "length_matched": "the constant of matched length",
    "random_train": "a random training text",
    "nearest_pixels": "the nearest training study by pixels",
    "nearest_encoder": "the nearest training study by the model's encoder",
}
"""Baselines of `hf_cxr.evaluation.baselines` in words."""
PROBES = {"encoder": "a linear probe on its own encoder", "pixels": "a linear probe on 16 × 16 pixels"}
"""Probes of `hf_cxr.evaluation.probes` in words."""


def template(path: Path) -> jinja2.Template:
    """A page's template: escaping on, undefined names an error, our filters known, `css` the style sheet."""
    shared = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, shared]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "score": score}
    environment.globals |= {"css": (shared / "plots.css").read_text(encoding="utf-8"), "counted": counted}
    return environment.get_template(path.name)


def number(value: float) -> str:
    """1234 → "1,234"; a median of 7.5 keeps its half."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def counted(value: float, one: str, many: str = "") -> str:
    """(1, "study", "studies") → "1 study"; the plural is made with an s unless given."""
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """A share as per cent; only exact ones read 0 % and 100 %."""
    value = 100 * share
    text = f"{value:.1f}" if value < 9.5 or value > 99 else f"{value:.0f}"
    text = f"{value:.0f}" if share in (0, 1) else {"0.0": "< 0.1", "100.0": "> 99.9"}.get(text, text)
    return f"{text}{NBSP}%"


def score(value: float | None, places: int = 3) -> str:
    """So many places, or a dash where there is none."""
    return "–" if value is None else f"{value:.{places}f}"


def drawn(
    makers: Mapping[str, Callable[[Any], Figure | None]], facts: Mapping[str, Any]
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all `makers` that find something to draw in `facts`, in our style."""
    for name, make in makers.items():
        with matplotlib.rc_context(cast(Any, STYLE)):
            if (figure := make(facts)) is not None:
                yield name, figure


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, for where no page sets the colours."""
    stream = io.BytesIO()
    whole = {"bbox_inches": "tight", "pad_inches": 0.12, "metadata": {"Software": None}}
    figure.savefig(stream, format="png", dpi=150, facecolor=BACKGROUND, **cast(Any, whole))
    return stream.getvalue()


def svg(figure: Figure, name: str) -> Markup:
    """The figure as inline SVG without addresses, its colours as CSS variables, its names not shared by another."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    head, _, body = text[text.index("<svg") :].strip().partition(">")
    head = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    text = f"{head}>{body}".replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub("|".join(VARIABLES), lambda colour: f"var(--{VARIABLES[colour[0]]})", text)
    return Markup(re.sub(r">\s+<", "><", text))  # matplotlib escapes the texts in it


def subplots(height: float, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**options)


def bare(axes: Axes, grid: str = "") -> None:
    """No frame, no tick marks; faint lines along one axis where values are to be read off."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if grid:
        axes.grid(axis=cast(Any, grid), color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)


def data_address(image: Image.Image, quality: int = 85) -> str:
    """An image as a JPEG inside the page."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
