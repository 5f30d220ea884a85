"""What is prepared and how, and which studies, rows and splits that gives: decided before anything is written.

Records and splits are decided in `hf_cxr.data.splits`, views in `hf_cxr.data.selection`."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_cxr.data import sources, splits, view_tables
from hf_cxr.data.schema import PAIR
from hf_cxr.data.selection import BOTH, FOUND, PAIRS, READABLE, REQUIRE, VIEWED, Selection, select
from hf_cxr.data.study import StoredImage, Study

log = logging.getLogger(__name__)

ONE_SPLIT = "sharing no image across splits"
STEPS = (FOUND, READABLE, VIEWED, BOTH, ONE_SPLIT)


@dataclass(frozen=True)
class PreparationConfig:
    """What is prepared, and how; the fields are the arguments of `hf_cxr.prepare`."""

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)  # what the source itself takes: `root`, …
    section: str = "any"
    size: int = 384
    placeholders: str = "drop"
    seed: int = 0
    split_file: str | Path | None = None
    views: str | Path | None = None
    view_columns: Mapping[str, str] | None = None
    pairs: str = "best"
    require: str = "any"

    def __post_init__(self) -> None:
        for name, choices in (("pairs", PAIRS), ("require", REQUIRE)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.view_columns and self.views is None:
            raise ValueError("view columns are those of a table of views, and there is none (--views TABLE)")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 8:
            raise ValueError(f"size must be a number of pixels, at least 8; got {self.size!r}")

    def fingerprint(self) -> str:
        """A hash of these settings, of the collection's files and of what is said of it (which a preset may change): a
        changed one is prepared anew."""
        listed = sources.studies(self.source, **self.options)
        said = sources.collection(self.source, **self.options)
        mark = splits.fingerprint(listed, (self.split_file, self.views))
        return hashlib.sha256(f"{self} {mark} {said}".encode()).hexdigest()[:16]

    def named_splits(self) -> dict[str, str] | None:
        """uid → split, if there is a split file."""
        return None if self.split_file is None else splits.read_split_file(self.split_file)

    def plan(self, named: Mapping[str, str] | None) -> tuple[splits.Plan, dict[str, Any]]:
        """The records that can be used, with the views of the `views` table put in, and what the preparation report
        says of that table. `ValueError` if their splits cannot be kept, whatever their images will be."""
        listed: Iterable[Study] = sources.studies(self.source, **self.options)
        said: dict[str, Any] = {}
        if self.pairs == "all":
            problem = "its uid ends like that of a further pair"
            listed = (replace(study, problem=problem) if PAIR.search(study.uid) else study for study in listed)
        if self.views is not None:
            table = view_tables.read_view_table(self.views, self.view_columns)
            listed, unnamed = view_tables.label_views(listed, table)
            said = {"images_without_a_view_in_the_table": unnamed, "unknown_view_words": sum(table.unknown.values())}
            if words := table.unknown_words(f"{self.views}: "):
                log.warning(words)
        made = splits.plan(listed, self.section, self.placeholders, named)
        splits.assign(made.studies, defaultdict(tuple), self.seed, named)
        return made, said


@dataclass(frozen=True)
class Choice:
    """What is made of the planned studies."""

    selections: list[Selection]  # of each study of the plan
    kept: list[int]  # indices of the studies that give rows
    digests: dict[str, set[str]]  # uid → digests of the images of that study, for each that could be used
    split_of_uid: dict[str, str]


def choose(
    config: PreparationConfig,
    plan: splits.Plan,
    images: Sequence[Sequence[StoredImage | str]],
    steps: Sequence[str],
    named: Mapping[str, str] | None,
) -> Choice:
    """Choose the rows and the split of each study, and continue the preparation report of `plan` by the `steps`, and
    by any other of `STEPS` that a study does not pass."""
    with_images = zip(plan.studies, images, strict=True)
    selections = [select(study, read, config.pairs, config.require) for study, read in with_images]
    rejects = [
        {"uid": study.uid, "step": selection.step, "reason": selection.reason}
        for study, selection in zip(plan.studies, selections, strict=True)
        if selection.step
    ]
    usable = [s for s, selection in enumerate(selections) if selection.rows]
    digests = {
        plan.studies[s].uid: {image.digest for image in images[s] if isinstance(image, StoredImage) and image.digest}
        for s in usable
    }
    split_of_uid = splits.assign([plan.studies[s] for s in usable], digests, config.seed, named)
    shared = "a study in a later split has the same image"
    rejects += [{"uid": uid, "step": ONE_SPLIT, "reason": shared} for uid, split in split_of_uid.items() if not split]
    failed = {reject["step"] for reject in rejects}
    splits.add_steps(plan.steps, [step for step in STEPS if step in steps or step in failed], rejects)
    plan.rejects.extend(rejects)
    plan.rejects.sort(key=lambda reject: plan.order[reject["uid"]])
    kept = [s for s in usable if split_of_uid[plan.studies[s].uid]]
    if plan.steps[-1]["kept"] != len(kept) or len(plan.order) != len(kept) + len(plan.rejects):
        raise RuntimeError(f"not every record is counted: {plan.steps}, {len(kept)} kept, {len(plan.rejects)} not")
    return Choice(selections, kept, digests, split_of_uid)


def patients_known(kept: Sequence[Study], split_of_uid: Mapping[str, str]) -> dict[str, Any]:
    """What the preparation report says of who is whose."""
    return {
        "studies_without_a_patient": sum(study.patient is None for study in kept),
        "likely_patient_columns": splits.likely_patients(kept, split_of_uid),
    }
