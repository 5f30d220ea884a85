"""Which two images of a study become its frontal and its lateral view, by the rule in `docs/data.md`.

Views that neither the collection nor a `--views` table (`hf_cxr.data.view_tables`) names are decided in
`hf_cxr.data.view_labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hf_cxr.data.study import MISSING, StoredImage, Study
from hf_cxr.data.view_labels import decide_views
from hf_cxr.inference.views import VIEWS

PAIRS = ("best", "all")
REQUIRE = ("any", "both")

# Steps of the preparation report that are decided here.
FOUND, READABLE, VIEWED, BOTH = (
    "with image files found",
    "with readable images",
    "with a frontal or lateral image",
    "with both views",
)


@dataclass(frozen=True)
class Selection:
    """What is made of a study's images."""

    views: tuple[tuple[str, float], ...]  # view and confidence of each image
    # Indices of the frontal and the lateral image of each row; `None`: the study has no such view.
    rows: tuple[tuple[int | None, int | None], ...] = ()
    step: str = ""  # the step of the preparation report that the study does not pass; then there are no rows
    reason: str = ""


def select(study: Study, images: Sequence[StoredImage | str], pairs: str = "best", require: str = "any") -> Selection:
    """Choose the rows of a study from its images; one that could not be read is a reason, not an image, and one that
    is "neither" frontal nor lateral is never chosen."""
    views = _views(study, images)
    candidates: dict[str, list[int | None]] = {}
    for view in VIEWS:
        listed = [i for i, (name, _) in enumerate(views) if name == view]
        readable = [i for i in listed if isinstance(images[i], StoredImage)]
        if listed and not readable:
            reason = str(images[listed[0]])
            step = FOUND if reason.startswith(MISSING) else READABLE
            return Selection(views, step=step, reason=f"{reason} ({view})" if step == FOUND else f"{view}: {reason}")
        readable.sort(key=lambda i: -views[i][1])  # stable: equals stay in the collection's order
        candidates[view] = list(readable)
    missing = [view for view in VIEWS if not candidates[view]]
    if len(missing) == len(VIEWS):
        return Selection(views, step=VIEWED, reason="no frontal or lateral image")
    if require == "both" and missing:
        return Selection(views, step=BOTH, reason=f"no {missing[0]} view")
    frontals, laterals = (candidates[view] or [None] for view in VIEWS)
    rows = product(frontals, laterals) if pairs == "all" else [(frontals[0], laterals[0])]
    return Selection(views, tuple(rows))


def _views(study: Study, images: Sequence[StoredImage | str]) -> tuple[tuple[str, float], ...]:
    undecided = [i for i, radiograph in enumerate(study.images) if radiograph.view is None]
    names = [study.images[i].label for i in undecided]
    evidence, hints = ([getattr(images[i], what, None) for i in undecided] for what in ("evidence", "hint"))
    decided = dict(zip(undecided, decide_views(names, evidence, hints) if names else [], strict=True))
    return tuple(
        decided[i] if radiograph.view is None else (radiograph.view, 1.0) for i, radiograph in enumerate(study.images)
    )
