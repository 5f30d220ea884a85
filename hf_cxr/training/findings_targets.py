"""What stage one learns: the findings that a text states, or a collection's own tags, as a table of labels.

Who learns them is in `hf_cxr.training.findings_pretraining`, how a text is read in `hf_cxr.inference.labeler`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_cxr.inference import labeler
from hf_cxr.inference.targets import IGNORED

MIN_POSITIVES = 10  # a finding with fewer positive training studies cannot be learned in findings pretraining
# Tags of a study of which nothing is known: the kit's own, Indiana's, PadChest's.
UNTAGGED = {"unlabelled", "no indexing", "technical quality of image unsatisfactory", "exclude", "suboptimal study"}
SAME = "unchanged"  # PadChest's: what was there before is still there, whatever it was


def finding_targets(texts: list[str], names: list[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Labels for findings pretraining, read from the texts themselves.

    Returns the sided finding names (default: those with at least `MIN_POSITIVES` positive studies), and a float32
    array of shape (studies, names): 1 stated, 0 denied or not mentioned, `IGNORED` uncertain.
    """
    return _table([labeler.sided_label(text) for text in texts], names)


Tags = Sequence[Sequence[str] | None]


def tag_targets(
    tags: Tags, uncertain: Tags | None = None, names: list[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Labels for findings pretraining from the dataset's own tags, in the form of `finding_targets`.

    A study without tags is normal. One that nobody tagged ("no indexing" in the Indiana collection) is all `IGNORED`,
    as are the tags that the collection calls uncertain, and those that an "unchanged" study may have.
    """
    least = MIN_POSITIVES if names is None else 0
    said = [dict.fromkeys(study or (), "positive") for study in tags]
    for study, doubted in zip(said, uncertain or (), strict=bool(uncertain)):
        study.update(dict.fromkeys(doubted or (), "uncertain"))
    names, targets = _table(said, names)
    for row, study in zip(targets, said, strict=True):
        if UNTAGGED & set(study):
            row[:] = IGNORED
        elif SAME in study:
            row[row == 0] = IGNORED
    enough = (targets == 1).sum(0) >= least
    known = [place for place, name in enumerate(names) if enough[place] and name not in {*UNTAGGED, SAME}]
    return [names[place] for place in known], targets[:, known]


def _table(labelled: Sequence[dict[str, str]], names: list[str] | None) -> tuple[list[str], np.ndarray]:
    if names is None:
        counts = Counter(name for labels in labelled for name, status in labels.items() if status == "positive")
        names = sorted(name for name, count in counts.items() if count >= MIN_POSITIVES)
    value = {"positive": 1.0, "uncertain": float(IGNORED)}
    rows = [[value.get(labels.get(name, ""), 0.0) for name in names] for labels in labelled]
    return names, np.array(rows, dtype=np.float32).reshape(len(labelled), len(names))
