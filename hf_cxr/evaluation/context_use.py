"""Which of the two a model with context reads: texts written anew with the images or the context of other studies,
and what each is worth. Texts of a model without context are permuted as they are: see `image_use`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.rules import FEWEST, READS_P

if TYPE_CHECKING:
    from hf_cxr.evaluation.prediction import Canvases, Writer, Written

PERMUTATIONS = 2  # of the images, and as many of the context: each costs writing the split once more
SHUFFLED = {"image": "images", "context": "context", "both": "both"}
"""What is shuffled: the start of its keys in `report.json`, and its name."""


def write_shuffled(
    writer: Writer, canvases: Canvases, prompts: Sequence[Sequence[int]], seed: int
) -> dict[str, list[list[Written]]]:
    """What the model writes from the images of another study and its own context ("image"), and from its own images
    and the context of another study ("context"), `PERMUTATIONS` times each; nothing for a single study."""
    runs: dict[str, list[list[Written]]] = {"image": [], "context": []}
    everybody = range(len(prompts))
    if len(prompts) < 2:
        return {}
    for order in bootstrap.derangements(len(prompts), seed, PERMUTATIONS):
        other = order.tolist()
        runs["image"].append(
            writer.write(
                lambda index, other=other: canvases.canvas(other[index]),  # type: ignore[misc]
                everybody,
                "Images shuffled",
                prompts.__getitem__,
            )
        )
        runs["context"].append(
            writer.write(
                canvases.canvas,
                everybody,
                "Context shuffled",
                lambda index, other=other: prompts[other[index]],  # type: ignore[misc]
            )
        )
    return runs


def texts_of_section(shuffled: Mapping[str, Sequence[Sequence[Written]]], section: str) -> dict[str, list[list[str]]]:
    """The texts of one section of what `write_shuffled` gives."""
    return {what: [[text.of(section) for text in run] for run in runs] for what, runs in shuffled.items()}


def gains(
    statistics: metrics.Statistics,
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[str],
    written: Mapping[str, Sequence[Sequence[str]]],
    permuted: dict[str, dict[str, Any]],
    patients: Sequence[Any],
    seed: int,
) -> dict[str, Any]:
    """`bootstrap.image_gain` for the images, the context and both, each under its own keys, and `with_context`: how
    many studies have which context.

    Args:
        rows: with `prediction`, and `context` where a study has one.
        written: what `write_shuffled` gives, as texts.
        permuted: `image_use.image_shuffle` of the texts, which shuffles both.
    """
    found: dict[str, Any] = {"with_context": dict(Counter(name for row in rows for name in row.get("context", {})))}
    none: dict[str, dict[str, Any]] = {
        key: {} for key in ("shuffled", "image_gain", "image_gain_ci95", "image_gain_p")
    }
    for what in SHUFFLED:
        gain = none
        if what == "both":
            gain = permuted
        elif runs := written.get(what):
            shuffled = [metrics.study_statistics(texts, references) for texts in runs]
            gain = bootstrap.image_gain(statistics, shuffled, patients, seed)
        scores = "shuffled" if what == "image" else f"shuffled_{what}"
        found |= {key.replace("image", what): value for key, value in gain.items() if key != "shuffled"}
        found[scores] = gain["shuffled"]
    return found


def signature() -> str:
    """What a report's signature says of these tests."""
    return (
        f"; shuffled images and shuffled context: texts written anew for {PERMUTATIONS} permutations each; both "
        f"shuffled: texts permuted, which is what the permutation p tests; images and context count as read by the "
        f"bootstrap's interval and p ≤ {READS_P}, from {FEWEST} patients on"
    )
