"""The texts of a split by section: those of the radiologist, those that a model wrote, and the rows of
`predictions.jsonl`. How they are scored lives in `hf_cxr.evaluation.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

from hf_cxr import metrics
from hf_cxr.data.sections import contexts, whole_texts
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.sections import TARGETS, Layout

if TYPE_CHECKING:
    from hf_cxr.evaluation.prediction import Written


def scored_sections(layout: Layout) -> tuple[str, ...]:
    """What a report of a model scores, the section it is judged by first; of several also the whole ("report")."""
    *others, top = layout.sections
    return (top, *others, layout.target) if others else (top,)


def texts_of(dataset: DatasetDict, split: str, section: str = "impression") -> list[str]:
    """The radiologists' texts of a split; none where the dataset has no such split."""
    return truths(dataset[split], section) if split in dataset else []


def truths(studies: Dataset, section: str) -> list[str]:
    """The radiologists' texts of studies: a section, or the whole ("report")."""
    return whole_texts(studies, Layout(TARGETS[section]))


def patients_of(studies: Dataset) -> list[str]:
    """Whose studies they are; where that is not known each is a patient of its own."""
    return studies["patient" if "patient" in studies.column_names else "uid"][:]


def study_rows(
    studies: Dataset, layout: Layout, written: Sequence[Written], scores: Sequence[float], views: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per study for `predictions.jsonl`, with what its text gets right and wrong, if findings can be read."""
    projections = studies["projection"] if "projection" in studies.column_names else [""] * len(studies)
    top = layout.top
    compared = {
        name: compared_texts(truths(studies, name), [text.of(name) for text in written]) for name in layout.sections
    }
    rows = []
    columns = zip(studies["uid"], patients_of(studies), views, projections, written, scores, strict=True)
    for place, (uid, patient, shown, projection, text, score) in enumerate(columns):
        said = {name: parts[place] for name, parts in compared.items()}
        rows.append(
            {
                "uid": uid,
                "patient": patient,
                top: said[top]["reference"],
                "prediction": said[top]["prediction"],
                "score": score,
                "sequence_probability": text.probability,
                "truncated": text.truncated,
                "views": shown,
                "projection": projection,
                **{kind: said[top][kind] for kind in ("matched", "missed", "invented")},
                **({"sections": said} if len(said) > 1 else {}),
            }
        )
    if layout.context:
        for row, given in zip(rows, contexts(studies), strict=True):
            row["context"] = {name: given[name] for name in layout.context if name in given}
    return rows


def compared_texts(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Any]]:
    """Both texts of each study, and which findings they share and do not, sides told apart; none where findings cannot
    be read."""
    compared, unread = [], metrics.unread_findings(references)
    for truth, text in zip(references, predictions, strict=True):
        there, stated = (frozenset() if unread else positive_findings(said, sided=True) for said in (truth, text))
        compared.append(
            {
                "reference": truth,
                "prediction": text,
                "matched": sorted(there & stated),
                "missed": sorted(there - stated),
                "invented": sorted(stated - there),
            }
        )
    return compared


def rows_of(
    rows: Sequence[Mapping[str, Any]], references: Sequence[str], predictions: Sequence[str], section: str
) -> list[dict[str, Any]]:
    """The rows with the texts of another section in place of the top one's."""
    return [
        dict(row) | {section: truth, "prediction": said}
        for row, truth, said in zip(rows, references, predictions, strict=True)
    ]
