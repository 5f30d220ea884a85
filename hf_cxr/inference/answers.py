"""What stands before and behind a model in an answer, whatever runs it: the study as it is read, the options, the
score and the findings of a text. The pipeline itself lives in `pipeline.py`.

A checkpoint brings this file as remote code, so it imports only numpy, Pillow and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .inputs import Numbered, context_among, read_views
from .labeler import positive_findings
from .plausibility import doubts
from .sections import Layout
from .views import UnreadableImage, enough, shown_of

ON_UNLIKELY, ON_UNREADABLE = ("warn", "error", "ignore"), ("error", "skip")


class ReadStudy(NamedTuple):
    """A study as an image processor and a prompt take it."""

    canvas: Image.Image
    shown: list[str]
    views: dict[str, Image.Image]
    context: dict[str, str]
    warnings: list[str]
    errors: list[tuple[str, str]]
    """Which of many studies, and why it cannot be read; then `canvas` is black."""


def read_study(study: Any, size: int, panels: int, layout: Layout, on_unlikely: str = "warn") -> ReadStudy:
    """Read a study, or a `Numbered` one, for a checkpoint of `panels` panels of `size` pixels a side."""
    views: dict[str, Image.Image] = {}
    warnings, context = list[str](), dict[str, str]()
    which, study = (f"study {study.place}: ", study.study) if isinstance(study, Numbered) else ("", study)
    try:
        least = enough(size) if panels > 1 else None  # a JPEG as the image processor would get it
        views, warnings = read_views(study, least, None if on_unlikely == "ignore" else doubts)
        context = context_among(study, layout.context)
        if warnings and on_unlikely == "error":
            raise UnreadableImage("; ".join(warnings))
        canvas, shown = shown_of(views, size, panels)
    except ValueError as error:  # raised later: a process that loads data would bury it in a traceback
        black = Image.new("RGB", (panels * size, size))  # holds its place in the batch
        return ReadStudy(black, [], views, context, warnings, [(which, str(error))])
    return ReadStudy(canvas, shown, views, context, warnings, [])


def check_answer_options(
    abstain_below: Any = None, on_unlikely: Any = None, on_unreadable: Any = None, return_attention: Any = None
) -> None:
    """Raises `ValueError` for a value that is none of an option's; `None` is unset."""
    if abstain_below is not None and not (isinstance(abstain_below, Real) and 0 <= float(abstain_below) <= 1):
        raise ValueError(f"abstain_below is a number between 0 and 1, not {abstain_below!r}")
    if on_unlikely not in (None, *ON_UNLIKELY):
        raise ValueError(f"on_unlikely is one of {', '.join(ON_UNLIKELY)}, not {on_unlikely!r}")
    if on_unreadable not in (None, *ON_UNREADABLE):
        raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, not {on_unreadable!r}")
    if return_attention not in (None, False, True, "words"):
        raise ValueError(f"return_attention is True, False or 'words', not {return_attention!r}")


def not_read(errors: Iterable[tuple[str, str]], layout: Layout, on_unreadable: str) -> list[dict[str, Any]] | None:
    """The answer for a study that could not be read, or its error; `None` where there are no `errors`."""
    for which, error in errors:
        if on_unreadable == "error":
            raise UnreadableImage(f"{which}{error}")
        return [dict.fromkeys(layout.sections) | {"score": None, "error": error}]
    return None


def calibrated(
    curve: Mapping[str, Any] | None, probabilities: Sequence[float], truncated: Sequence[bool] | None = None
) -> list[float]:
    """What a text's probability is worth: the chance that the findings of its last section are exactly those of the
    radiologist's, by the curve that `hf_cxr.evaluation.calibration` fitted on the validation split; the probabilities
    as they are where there is none. A text that was cut short is worth 0."""
    values = np.interp(probabilities, curve["x"], curve["y"]) if curve else np.asarray(probabilities, dtype=np.float64)
    return (values if truncated is None else np.where(truncated, 0.0, values)).tolist()


def scored(
    rows: Sequence[dict[str, Any]],
    layout: Layout,
    curve: Mapping[str, Any] | None,
    truncated: Sequence[bool],
    findings: bool,
) -> list[dict[str, Any]]:
    """The texts of a study, whose `score` is a probability, with what that is worth and, if asked, their findings."""
    scores = calibrated(curve, [row["score"] for row in rows], truncated)
    marks = [{"truncated": True} if short else {} for short in truncated]
    rows = [row | {"score": score} | mark for row, score, mark in zip(rows, scores, marks, strict=True)]
    if findings:
        rows = [row | _findings(" ".join(row[name] for name in layout.sections)) for row in rows]
    return rows


def finished(
    rows: Sequence[dict[str, Any]], abstain_below: float | None, warnings: Sequence[str]
) -> list[dict[str, Any]]:
    """The texts of a study, those of a low score withheld, each with the study's warnings."""
    if abstain_below is not None:
        rows = [_withheld(row) if row["score"] < abstain_below else row | {"abstained": False} for row in rows]
    return [row | {"warnings": list(warnings)} for row in rows] if warnings else list(rows)


def _findings(text: str) -> dict[str, list[str]]:
    stated = positive_findings(text, sided=True)
    possible = positive_findings(text, sided=True, uncertain=True) - stated
    return {"finding_labels": sorted(stated), "possible_finding_labels": sorted(possible)}


def _withheld(row: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(row) | {"score": row["score"], "abstained": True}
