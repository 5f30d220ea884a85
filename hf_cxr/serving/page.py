"""What the app shows, as HTML and CSS: an image, an answer with its attention, the figures of a run. Every image is in
the page itself, so none is written to the disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hf_cxr.evaluation.report.figures import CARD_FIGURES
from hf_cxr.evaluation.report.tables import COLUMNS, TITLES, baselines, readable
from hf_cxr.utils.files import json_object
from hf_cxr.utils.plots import score

REPORT = ("report.json", *(f"figures/{name}.png" for name in CARD_FIGURES))
"""The files of a run that `run_html` shows."""
SHORT = "Research use only. Not for diagnosis."
NOTE = f"{SHORT} What stands here may be wrong, and no radiologist has seen it."
SIDE = 360  # pixels of the longer side of an image on the page
WORDS = 160  # words of a text that show where the model looked
CSS = """
.cxr-note { background: #ffd24d; color: #1a1400; font-weight: 600; padding: .6rem .9rem; border-radius: 6px }
.cxr-note { margin: 0 }
.always { position: fixed; top: 0; left: 0; right: 0; z-index: 50; border-radius: 0; text-align: center }
.gradio-container { padding-top: 3rem }
.toast-wrap { top: 3.4rem !important }
.cxr img { max-width: 100%; height: auto; display: block; background: #000; border-radius: 4px }
.cxr .views { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0 }
.cxr figure { margin: 0; position: relative; max-width: 100% }
.cxr .map { position: absolute; top: 0; left: 0; display: none }
.cxr .text { font-size: 1.2rem; line-height: 1.7; margin: .3rem 0; overflow-wrap: anywhere }
.cxr .word { cursor: help; border-bottom: 2px dotted #d05000; border-radius: 3px; outline-offset: 1px }
.cxr .word:is(:hover, :focus) { background: #ff6000; color: #000 }
.cxr .chip { display: inline-block; border: 1px solid; border-radius: 1rem; padding: 0 .7rem; margin: .2rem }
.cxr .unsure { border-style: dashed }
.cxr .small { font-size: .9rem; opacity: .85 }
.cxr .wrong { border-left: 4px solid #d22; padding-left: .7rem }
.cxr .doubt { border-left: 4px solid #d90; padding-left: .7rem }
.cxr .scroll { overflow-x: auto }
.cxr :is(td, th) { padding: .2rem .7rem; text-align: right }
.cxr :is(td, th):first-child { text-align: left }
""" + "".join(f".cxr:has(.w{n}:is(:hover, :focus)) .m{n} {{ display: block }}\n" for n in range(WORDS))


def boxed(*parts: str) -> str:
    """Parts of HTML in the box that the style sheet is for."""
    return f'<div class="cxr">{"".join(parts)}</div>'


def told(messages: Iterable[str], kind: str) -> str:
    """Messages, one a line, for screen readers too; `kind` is "wrong" or "doubt"."""
    return "".join(f'<p class="{kind}" role="alert">{escape(message)}</p>' for message in messages)


def shown(image: Image.Image, alt: str, kind: str = "") -> str:
    """An image, made small, in the page itself."""
    small = image.convert("RGB" if image.mode == "RGB" else "L")
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    classes = f' class="{kind}"' if kind else ""
    return f'<img{classes} alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def looked_at(answer: Mapping[str, Any]) -> dict[str, str]:
    """The images of an answer with attention as HTML, by view: the whole text's, and over it those of its words."""
    words = answer.get("attention_words", ())[:WORDS]
    return {
        view: f"<figure>{shown(image, f'{view} view, where the model looked')}"
        + "".join(shown(maps[view], "", f"map m{n}") for n, (_, maps) in enumerate(words))
        + f"<figcaption>{view}</figcaption></figure>"
        for view, image in (answer.get("attention") or {}).items()
    }


def answer_html(answer: Mapping[str, Any], views: Mapping[str, str], words: list[str], worth: str) -> str:
    """An answer of the pipeline as a visitor reads it.

    Args:
        views: what `looked_at` gave. `words`: those of `attention_words`, in order. `worth`: what a score means.
    """
    if "error" in answer:
        return boxed(told([answer["error"]], "wrong"))
    parts = [told(answer.get("warnings") or (), "doubt")]
    worth = f'<p>Score <b>{answer["score"]:.2f}</b> <span class="small">{escape(worth)}</span></p>'
    if answer.get("abstained"):
        parts += ["<p class='text'>Withheld: the score is below what you asked for.</p>", worth]
        return boxed(*parts, f'<p class="cxr-note">{NOTE}</p>')
    found = iter(enumerate(words))
    sections = {name: answer[name] for name in ("findings", "impression") if name in answer}
    for name, text in sections.items():
        title = f"<h3>{name.capitalize()}</h3>"
        parts.append(f'{title}<p class="text" lang="und">{" ".join(_words(text, found)) or "(no text)"}</p>')
    if answer.get("truncated"):
        parts.append(told(["The text was cut short."], "doubt"))
    chips = [f'<span class="chip">{escape(name)}</span>' for name in answer.get("finding_labels") or ()]
    possible = answer.get("possible_finding_labels") or ()
    chips += [f'<span class="chip unsure">possible: {escape(name)}</span>' for name in possible]
    parts += [f"<p>{''.join(chips) or 'No finding is stated.'}</p>", worth]
    if views:
        parts.append(f'<div class="views">{"".join(views.values())}</div>')
        parts.append(
            '<p class="small">Orange: where the model looked. Point at a word, or tab to it, to see its own.</p>'
        )
    return boxed(*parts, f'<p class="cxr-note">{NOTE}</p>')


def _words(text: str, found: Iterator[tuple[int, str]]) -> Iterator[str]:
    """The words of a text; those that have an attention map of their own can be pointed at."""
    number, known = next(found, (-1, None))
    for word in text.split():
        if word != known:
            yield escape(word)
            continue
        yield f'<span class="word w{number}" tabindex="0">{escape(word)}</span>'
        number, known = next(found, (-1, None))


def _png(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def run_html(folder: Path) -> str:
    """What is known of a run: the verdict, its scores beside those of image-blind baselines, its figures."""
    if not (folder / "report.json").is_file():
        return boxed(
            "<p>This checkpoint brings no report: nothing is known of what it writes. Run hf-cxr evaluate.</p>"
        )
    report = json_object(folder / "report.json")
    columns = {key: COLUMNS[key] for key in readable(report, COLUMNS)}
    rows = {"model": report} | baselines(report)
    rows |= {TITLES.get(name, name): part for name, part in report.get("sections", {}).items()}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns.values()))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{score(scores.get(key))}</td>' for key in columns)}</tr>"
        for name, scores in rows.items()
    )
    figures = "".join(
        f"<figure>{_png(path, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for name, caption in CARD_FIGURES.items()
        if (path := folder / "figures" / f"{name}.png").is_file()
    )
    scope = f"{report['n']} studies of the {report.get('split', 'test')} split"
    return boxed(
        f"<h3>Verdict</h3><p>{escape(report['verdict'])}</p><h3>Scores on {escape(scope)}</h3>",
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div><div class="views">{figures}</div>',
    )
