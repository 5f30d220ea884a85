"""What became of every study and of every image of a collection: the preparation report, and the list of images."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_cxr.data.images import StoredImage
from hf_cxr.data.selection import Selection
from hf_cxr.data.study import Study

IMAGE_COLUMNS = ("uid", "image", "view", "confidence", "use", "reason")
"""Columns of `images.csv`. `use` is "used", "unused", "unreadable" or "study left out"."""


def add_steps(steps: list[dict[str, Any]], names: Iterable[str], rejects: Iterable[Mapping[str, str]]) -> None:
    """Continue the steps of a preparation report by the steps `names`, with what `rejects` says was dropped there."""
    dropped = Counter(reject["step"] for reject in rejects)
    for name in names:
        steps.append({"step": name, "kept": steps[-1]["kept"] - dropped[name], "dropped": dropped[name]})


def nothing_left(total: int, rejects: list[dict[str, str]]) -> str:
    """The one line to say when no study can be used."""
    if not rejects:
        return "no usable study: the source is empty"
    step, count = Counter(reject["step"] for reject in rejects).most_common(1)[0]
    first = next(reject for reject in rejects if reject["step"] == step)
    return f"no usable study among {total:,}: {count:,} not {step} (first: uid {first['uid']}, {first['reason']})"


def format_preparation(preparation: Mapping[str, Any]) -> str:
    """The preparation report of `hf_cxr.prepare` as lines of text: what each step kept and dropped, then the
    splits."""
    width = max(len(step["step"]) for step in preparation["steps"])
    lines = [
        f"{step['step']:<{width}}  {step['kept']:>7,}" + (f"  (−{step['dropped']:,})" if step["dropped"] else "")
        for step in preparation["steps"]
    ]
    lines += [f"{'→ ' + name:<{width}}  {count:>7,}" for name, count in preparation["splits"].items()]
    return "\n".join(lines)


def list_images(
    studies: Iterable[tuple[Study, Sequence[StoredImage | str], Selection | None]], reasons: Mapping[str, str]
) -> tuple[str, dict[str, int]]:
    """The text of `images.csv`, a line for every image that the collection lists, and how many had which use.

    Args:
        studies: Each study with its images and what was chosen of them (`None`: it was left out before that).
        reasons: uid → why a study was left out.
    """
    listing, uses = io.StringIO(), Counter[str]()
    writer = csv.writer(listing, lineterminator="\n")
    writer.writerow(IMAGE_COLUMNS)
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
