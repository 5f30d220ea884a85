"""Frontal or lateral: decided from file names, pixels and the DICOM header where the collection does not say.

The evidence is a sum of log-odds (natural logarithm, positive for frontal), weighed together for all images of a
study. `docs/views.md` says how often it is right; `benchmarks/view_labels.py` measures that.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from hf_cxr.data.archives import image_key

# How often an image is (frontal, lateral) by the last block of its name, series and number within it: "4004" in
# "1000_IM-0003-4004". Counted on half of the Kaggle form's uids (`benchmarks/view_labels.py --fit`).
# fmt: off
SUFFIXES: dict[str, tuple[int, int]] = {
    "1001": (1458, 92), "2001": (69, 1138), "1002": (9, 222), "3001": (70, 87), "0001": (60, 42), "0002": (37, 55),
    "3003": (4, 58), "4004": (61, 0), "2002": (29, 10), "12012": (8, 3), "1002001": (8, 0),
}
# fmt: on
RELIANCE = 0.5
"""Share of their weight that names keep where a study has several, as they are not independent: "1001" beside "2001"
would give odds of 260 for the first to be the frontal one, ten times what is counted. This, `FIRST` and `BOTH_VIEWS`
have the least log-loss on the same half of the uids."""

FIRST = 0.5
"""Log-odds for the first image of several in sorted order."""

FRONTAL_HEADER, LATERAL_HEADER = 0.6, -4.0
"""A DICOM header that names a frontal view is right for 66 % of the images, one that names a lateral for 99.9 %
(`dicom_headers.csv.gz` of torchxrayvision against the Kaggle form's projections, all uids); rounded towards 0."""

NEITHER = 0.95
"""Confidence in what the pixels say is no chest film: at `view_evidence.NEITHER` log-odds of it, and beyond."""

BOTH_VIEWS, BOTH_VIEWS_SEEN = 5.5, 2.3
"""Log-odds that two images of a study show two views rather than one: in the Indiana collection, which the names are
of; and in any, where pixels speak of every image. (Of CheXpert Plus' 223,228 images of 187,711 studies, 35,517 are not
the first of their study, and 32,387 of CheXpert's are laterals: 91 of 100.)"""
MOST_JOINT = 8
"""Images of a study that are weighed together; of more, each is decided by itself."""

# Of words in lower case, with blanks for all that is no letter.
_PA, _AP = r"pa|poster(?:o|ior) ?anterior", r"ap|anter(?:o|ior) ?posterior"
_FRONTAL, _LATERAL = re.compile(rf"\b(?:{_PA}|{_AP}|frontal|f)\b"), re.compile(r"\b(?:ll?|rl|lat|lateral)\b")
_NEITHER = re.compile(
    r"\b(?:decub\w*|[lr]ld|obl|obliques?|[lr](?:a|p|l)o|lordotic|axial|coronal|sagittal|swimmer(?: ?s)?|abdom\w+|kub"
    r"|costal|ribs?|exclude)\b"
)


class ViewWord(NamedTuple):
    """What a collection's word for a view says."""

    view: str | None
    """"frontal", "lateral", "neither" of them, or `None`: not known."""
    projection: str = ""
    """"PA" or "AP", of a frontal image."""


@functools.cache
def view_of(word: str) -> ViewWord:
    """What a word for a view says: the terms of DICOM's View Position (0018,5101) and what MIMIC-CXR, CheXpert Plus,
    PadChest, ReXGradient, NIH and covid-chestxray have in its place, in any case, written together or apart.

    Decubitus, oblique, lordotic and axial films, views of ribs or of the abdomen, and slices are "neither". A word
    that says both ("PA and lateral", of a study) says nothing of one image.

    >>> view_of("AP_horizontal"), view_of("XTABLE LATERAL").view, view_of("PA LLD").view, view_of("UNK").view
    (ViewWord(view='frontal', projection='AP'), 'lateral', 'neither', None)
    """
    plain = " ".join(re.findall(r"[a-z]+", word.lower()))
    if _NEITHER.search(plain):
        return ViewWord("neither")
    frontal, lateral = _FRONTAL.findall(plain), bool(_LATERAL.search(plain))
    if bool(frontal) == lateral:
        return ViewWord(None)
    if lateral:
        return ViewWord("lateral")
    projections = {name for name, spelling in (("PA", _PA), ("AP", _AP)) for f in frontal if re.fullmatch(spelling, f)}
    return ViewWord("frontal", projections.pop() if len(projections) == 1 else "")


def decide_views(
    names: Sequence[str], pixels: Sequence[float | None] = (), hints: Sequence[str | None] = ()
) -> list[tuple[str, float]]:
    """View and confidence (0.5 to 1) of each image of one study.

    Args:
        names: File names, in the order of the collection.
        pixels: `pixel_evidence` of each, `None` where it is not known; may be empty. An image of which it is NaN is
            "neither" where no header names its view, and the others are decided without it.
        hints: "frontal" or "lateral" as a DICOM header says, or `None`; may be empty.
    """
    pixels, hints = pixels or [None] * len(names), hints or [None] * len(names)
    films = [i for i, odds in enumerate(pixels) if hints[i] or not math.isnan(odds or 0.0)]
    some = [names[i] for i in films], [pixels[i] for i in films], [hints[i] for i in films]
    named = iter(_frontal_or_lateral(*some))
    neither = "neither", NEITHER
    return [next(named) if i in films else neither for i in range(len(names))]


def _frontal_or_lateral(
    names: Sequence[str], pixels: Sequence[float | None], hints: Sequence[str | None]
) -> list[tuple[str, float]]:
    several = len(names) > 1
    first = min(range(len(names)), key=lambda i: image_key(names[i]), default=0)
    evidence = []
    for i, name in enumerate(names):
        header = {"frontal": FRONTAL_HEADER, "lateral": LATERAL_HEADER}.get(hints[i] or "", 0.0)
        seen = pixels[i] or 0.0
        order = FIRST if several and i == first else 0.0
        said = (RELIANCE if several else 1.0) * name_evidence(name)
        evidence.append(said + order + (0.0 if math.isnan(seen) else seen) + header)
    if several and len(names) <= MOST_JOINT:
        frontal = _joint(evidence, BOTH_VIEWS_SEEN if all(pixels) else BOTH_VIEWS)
    else:
        frontal = [1 / (1 + math.exp(-odds)) for odds in evidence]
    views = []
    for i, share in enumerate(frontal):
        # Where nothing speaks for either, the first in sorted order is the frontal one (89 % of two-image studies).
        undecided = abs(share - 0.5) < 1e-9
        is_frontal = i == first if undecided else share > 0.5
        views.append(("frontal" if is_frontal else "lateral", max(share, 1 - share)))
    return views


def name_evidence(name: str) -> float:
    """Log-odds that an image is frontal, by the last block of its name; 0 for a block that says nothing."""
    frontal, lateral = SUFFIXES.get(image_key(name).rpartition("-")[2], (0, 0))
    return math.log((frontal + 1) / (lateral + 1))


def _joint(evidence: Sequence[float], both_views: float) -> list[float]:
    """Probability of each image to be frontal, over all ways to name the views of a study."""
    weights = {}
    for way in product((True, False), repeat=len(evidence)):
        odds = sum(e / 2 if frontal else -e / 2 for e, frontal in zip(evidence, way, strict=True))
        weights[way] = odds + (both_views if len(set(way)) == 2 else 0.0)
    most = max(weights.values())
    shares = {way: math.exp(weight - most) for way, weight in weights.items()}
    total = sum(shares.values())
    return [sum(share for way, share in shares.items() if way[i]) / total for i in range(len(evidence))]
