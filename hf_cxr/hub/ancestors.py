"""What a run began from: the checkpoints of other runs, as far as their card.json tells, back to the first.

The card that tells of them is made in `hf_cxr.hub.model_card`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_cxr.data.collection import Collection, collection_of
from hf_cxr.hub.privacy import FACTS
from hf_cxr.utils.files import json_object

SYNTHETIC = ("phantom",)  # sources whose texts may be shown: no patient is behind them
INSIDE = ("checkpoint-", "findings_encoder")  # how the names of checkpoints in a run folder begin
KEPT = ("source", "collection", "splits_sha256")  # of the preparation report


def ancestors(starts: Iterable[str]) -> list[dict[str, Any]]:
    """The checkpoints that a run begins from, and those that these began from.

    Each has `name` (a Hub id, or the last part of a run's folder), `on_hub`, and of its training `dataset`, `licence`,
    `base_models` and `preparation` (`source`, `collection`, `splits_sha256`): empty where no card.json tells.
    """
    found: list[dict[str, Any]] = []
    for start in starts:
        run, on_hub, facts = Path(start), not Path(start).exists(), dict[str, Any]()
        run = run.parent if run.name.startswith(INSIDE) else run
        with contextlib.suppress(OSError, ValueError):
            facts = json_object(run / FACTS)
        one = {"name": start if on_hub else run.resolve().name, "on_hub": on_hub, "dataset": facts.get("dataset")}
        one |= {"licence": facts.get("licence"), "base_models": facts.get("base_models", [])}
        one["preparation"] = {key: value for key, value in facts.get("preparation", {}).items() if key in KEPT}
        found += [one, *facts.get("continued_from", ())]
    return found


def trainings(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All that a run has learned from, by its card.json: its own dataset, then those of its ancestors."""
    return [facts, *facts.get("continued_from", ())]


def is_synthetic(facts: Mapping[str, Any]) -> bool:
    """Whether no patient is behind anything that a run and its ancestors learned from."""
    return all(one["preparation"].get("source") in SYNTHETIC for one in trainings(facts))


def split_otherwise(facts: Mapping[str, Any]) -> list[str]:
    """The ancestors that learned from a run's own collection in another split, so perhaps from its test studies."""
    own, digest = facts["preparation"], "splits_sha256"
    return [
        one["name"]
        for one in facts.get("continued_from", ())
        if one["preparation"] and collection_of(one["preparation"]).name == (name := collection_of(own).name)
        if name != Collection().name or one["dataset"] == facts["dataset"]
        if one["preparation"].get(digest) != own.get(digest)
    ]
