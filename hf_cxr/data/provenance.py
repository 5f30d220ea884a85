"""What became of every study and of every image of a collection: the preparation report, and the list of images."""

from __future__ import annotations

import csv
import hashlib
import io
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_cxr.data.selection import Selection
from hf_cxr.data.study import StoredImage, Study


def format_preparation(preparation: Mapping[str, Any]) -> str:
    """The preparation report of `hf_cxr.prepare` as lines of text: what each step kept and dropped, then the
    splits, and what is not known of the patients."""
    width = max(len(step["step"]) for step in preparation["steps"])
    lines = [
        f"{step['step']:<{width}}  {step['kept']:>7,}" + (f"  (−{step['dropped']:,})" if step["dropped"] else "")
        for step in preparation["steps"]
    ]
    lines += [f"{'→ ' + name:<{width}}  {count:>7,}" for name, count in preparation["splits"].items()]
    return "\n".join(lines + _unknown_patients(preparation))


def _unknown_patients(preparation: Mapping[str, Any]) -> list[str]:
    """The sentences that warn of patients who are not named; none where every study names its own."""
    if not (unnamed := preparation.get("studies_without_a_patient")):
        return []
    total = sum(preparation["studies"].values())
    who = f"no study of {total:,} names its" if unnamed == total else f"{unnamed:,} of {total:,} studies name no"
    said = [f"Warning: {who} patient, so a patient with several studies may be in several splits."]
    for column, counts in preparation["likely_patient_columns"].items():
        said.append(
            f"Column {column!r} seems to name patients: {counts['in_several_splits']:,} of the "
            f"{counts['with_several_studies']:,} it gives several studies are in several splits. "
            f"If it does, prepare with --columns patient={shlex.quote(column)}"
        )
    return said


def list_images(
    studies: Iterable[tuple[Study, Sequence[StoredImage | str], Selection | None]], reasons: Mapping[str, str]
) -> tuple[str, dict[str, int]]:
    """The text of `images.csv`, a line for every image that the collection lists, and how many had which use: "used",
    "unused", "unreadable" or "study left out".

    Args:
        studies: Each study with its images and what was chosen of them (`None`: it was left out before that).
        reasons: uid → why a study was left out.
    """
    listing, uses = io.StringIO(), Counter[str]()
    writer = csv.writer(listing, lineterminator="\n")
    writer.writerow(("uid", "image", "view", "confidence", "use", "reason"))
    for study, images, selection in studies:
        chosen = {i for row in selection.rows for i in row} if selection else set()
        for i, radiograph in enumerate(study.images):
            view, confidence = selection.views[i] if selection else (radiograph.view or "", None)
            if study.uid in reasons:
                use, reason = "study left out", reasons[study.uid]
            elif isinstance(images[i], str):
                use, reason = "unreadable", str(images[i])
            else:
                use, reason = ("used" if i in chosen else "unused"), ""
            uses[use] += 1
            share = "" if confidence is None else f"{confidence:.3f}"
            writer.writerow((study.uid, radiograph.label, view, share, use, reason))
    return listing.getvalue(), dict(sorted(uses.items()))


def digest_of(images: Iterable[Sequence[StoredImage | str]]) -> str:
    """SHA-256 of what every image that was looked for turned out to be."""
    digest = hashlib.sha256()
    for read in images:
        digest.update(repr([p.digest if isinstance(p, StoredImage) else p for p in read]).encode())
    return digest.hexdigest()
