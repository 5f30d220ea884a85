"""The `datasets` builder: studies → images sized for training → rows, and the preparation report of all that was left
out.

It has a file of its own, without `open` or `Path`, because `datasets` replaces these names in the module of a builder.
Records and splits are decided in `hf_cxr.data.splits`, views in `hf_cxr.data.selection`; images are read in
`hf_cxr.data.images`, and a dataset folder is written in `hf_cxr.data.prepare`."""

from __future__ import annotations

import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets

from hf_cxr.data import provenance, sources, splits, view_labels
from hf_cxr.data.images import StoredImage, read_images
from hf_cxr.data.leakage import text_overlap
from hf_cxr.data.selection import BOTH, FOUND, PAIRS, READABLE, REQUIRE, VIEWS, Selection, label_views, select
from hf_cxr.data.study import Study

FEATURES = datasets.Features(
    {
        "uid": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "impression": datasets.Value("string"),
        "findings": datasets.Value("string"),
        "indication": datasets.Value("string"),
        "tags": datasets.List(datasets.Value("string")),
        "patient": datasets.Value("int32"),
        "frontal_confidence": datasets.Value("float32"),
        "lateral_confidence": datasets.Value("float32"),
    }
)
PAIR = re.compile(r"#\d+$")
"""How the uid of a further row of a study ends, under `pairs="all"`."""
ONE_SPLIT = "sharing no image across splits"


@dataclass
class StudyConfig(datasets.BuilderConfig):
    """What `StudyBuilder` builds; the fields are the arguments of `hf_cxr.prepare`."""

    source: str = "phantom"
    options: dict[str, Any] = field(default_factory=dict)
    """What the source itself takes: `root`, `num_studies`, …"""
    section: str = "impression"
    size: int = 384
    placeholders: str = "drop"
    seed: int = 0
    split_file: str | None = None
    views: str | None = None
    pairs: str = "best"
    require: str = "any"
    unnamed: int = 0
    """Found by `plan`: images that the `views` table does not name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("pairs", PAIRS), ("require", REQUIRE)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 8:
            raise ValueError(f"size must be a number of pixels, at least 8; got {self.size!r}")

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The name of the cache folder: it follows the source's files, so a changed collection is built anew."""
        listed = sources.studies(self.source, **self.options)
        mark = splits.fingerprint(listed, (self.split_file, self.views))
        return super().create_config_id(config_kwargs | {"fingerprint": mark}, custom_features)

    def plan(self) -> splits.Plan:
        """The records that can be used, with the views of the `views` table put in."""
        listed: Iterable[Study] = sources.studies(self.source, **self.options)
        if self.pairs == "all":
            listed = (
                replace(s, problem="its uid ends like that of a further pair") if PAIR.search(s.uid) else s
                for s in listed
            )
        if self.views is not None:
            listed, self.unnamed = label_views(listed, view_labels.read_view_table(self.views))
        return splits.plan(listed, self.section, self.placeholders, self.named_splits())

    def named_splits(self) -> dict[str, str] | None:
        """uid → split, if there is a split file."""
        return None if self.split_file is None else splits.read_split_file(self.split_file)


@dataclass(frozen=True)
class Row:
    """A row to be written: a study and the two images chosen for it."""

    study: Study
    uid: str
    patient: int
    frontal: StoredImage | None
    lateral: StoredImage | None
    confidences: tuple[float | None, float | None]


class StudyBuilder(datasets.GeneratorBasedBuilder):
    """Builds any source as a dataset; `download_and_prepare(num_proc=…)` reads images in so many processes.

    Beside the data it leaves `preparation.json`, `rejects.jsonl` and `images.csv` in its cache folder.
    """

    BUILDER_CONFIG_CLASS = StudyConfig
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory; two images of 384 pixels take about 200 kB

    config: StudyConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def download_and_prepare(self, *args: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        """As in `datasets`; the processes read images, which is the work, and one writes the rows."""
        self._readers = num_proc or 1
        super().download_and_prepare(*args, **kwargs)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        config = self.config
        plan = config.plan()
        store = pathlib.Path(self._output_dir, "images.bin")
        images = read_images(plan.studies, config.size, store, self._readers)
        selections = [
            select(study, read, config.pairs, config.require) for study, read in zip(plan.studies, images, strict=True)
        ]
        rejects = [
            {"uid": study.uid, "step": selection.step, "reason": selection.reason}
            for study, selection in zip(plan.studies, selections, strict=True)
            if selection.step
        ]
        chosen = [s for s, selection in enumerate(selections) if selection.rows]
        digests = {
            plan.studies[s].uid: {image.digest for image in images[s] if isinstance(image, StoredImage)}
            for s in chosen
        }
        candidates = [plan.studies[s] for s in chosen]
        split_of_uid = splits.assign(candidates, digests, config.seed, config.named_splits())
        shared = "a study in a later split has the same image"
        rejects += [
            {"uid": uid, "step": ONE_SPLIT, "reason": shared} for uid, split in split_of_uid.items() if not split
        ]

        steps = [FOUND, READABLE, *([BOTH] if config.require == "both" else []), ONE_SPLIT]
        provenance.add_steps(plan.steps, steps, rejects)
        plan.rejects.extend(rejects)
        plan.rejects.sort(key=lambda reject: plan.order[reject["uid"]])
        kept = [s for s in chosen if split_of_uid[plan.studies[s].uid]]
        if plan.steps[-1]["kept"] != len(kept) or len(plan.order) != len(kept) + len(plan.rejects):
            raise RuntimeError(f"not every record is counted: {plan.steps}, {len(kept)} kept, {len(plan.rejects)} not")
        if not kept:
            raise ValueError(provenance.nothing_left(len(plan.order), plan.rejects))

        rows: dict[str, list[Row]] = {name: [] for name in splits.SPLITS}
        patients: dict[str, int] = {}
        for s in kept:
            study = plan.studies[s]
            patient = patients.setdefault(study.patient or study.uid, len(patients))
            rows[split_of_uid[study.uid]] += _rows(study, patient, images[s], selections[s])
        tied = splits.tied_patients([plan.studies[s] for s in kept], digests)
        self._write_preparation(plan, images, selections, rows, tied)
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"rows": part, "store": str(store)})
            for name, part in rows.items()
        ]

    def _generate_examples(self, rows: list[Row], store: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with io.FileIO(store) as stream:
            for row in rows:
                yield row.uid, _encode(row, stream)

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        folder = pathlib.Path(self._output_dir)
        (folder / "images.bin").unlink()
        self.info.description = provenance.format_preparation(
            json.loads((folder / "preparation.json").read_text("utf-8"))
        )

    def _write_preparation(
        self,
        plan: splits.Plan,
        images: Sequence[Sequence[StoredImage | str]],
        selections: Sequence[Selection],
        rows: Mapping[str, list[Row]],
        tied: Mapping[str, int],
    ) -> None:
        """Write what became of every study and of every image beside the data."""
        with_images = zip(plan.studies, images, selections, strict=True)
        unread = ((study, ("",) * len(study.images), None) for study in plan.rejected)
        everything = sorted([*with_images, *unread], key=lambda entry: plan.order[entry[0].uid])
        reasons = {reject["uid"]: reject["reason"] for reject in plan.rejects}
        listing, uses = provenance.list_images(everything, reasons)
        target = splits.SECTIONS[self.config.section][0]
        facts: dict[str, Any] = {
            "steps": plan.steps,
            "splits": {name: len(part) for name, part in rows.items()},
            "studies": {name: len({row.study.uid for row in part}) for name, part in rows.items()},
            "images": uses,
            "patients_tied_by_an_image": tied,
            "studies_without_a_patient": len(
                {row.study.uid for part in rows.values() for row in part if row.study.patient is None}
            ),
            "images_sha256": provenance.digest_of(images),
            "text_overlap": text_overlap(
                {name: [getattr(row.study, target) for row in part] for name, part in rows.items()}
            ),
        }
        if (named := self.config.named_splits()) is not None:
            facts["split_file_uids_without_a_study"] = len(set(named) - set(plan.order))
        if self.config.views is not None:
            facts["images_without_a_view_in_the_table"] = self.config.unnamed
        lines = (json.dumps(reject, ensure_ascii=False) + "\n" for reject in plan.rejects)
        folder = pathlib.Path(self._output_dir)
        (folder / "preparation.json").write_text(json.dumps(facts), encoding="utf-8")
        (folder / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "images.csv").write_text(listing, encoding="utf-8")


def _rows(study: Study, patient: int, images: Sequence[StoredImage | str], selection: Selection) -> Iterator[Row]:
    """The first row keeps the uid of its study; further pairs of images get "uid#2", "uid#3", …"""
    for number, indices in enumerate(selection.rows, start=1):
        frontal, lateral = (None if i is None else images[i] for i in indices)
        assert not isinstance(frontal, str)
        assert not isinstance(lateral, str)
        confidences = tuple(None if i is None else selection.views[i][1] for i in indices)
        uid = study.uid if number == 1 else f"{study.uid}#{number}"
        yield Row(study, uid, patient, frontal, lateral, (confidences[0], confidences[1]))


def _encode(row: Row, store: io.FileIO) -> dict[str, Any]:
    """A row of `FEATURES`. Images are 8-bit grey PNG (lossless), longer side at most `size` pixels."""
    encoded: dict[str, Any] = {
        "uid": row.uid,
        "impression": row.study.impression,
        "findings": row.study.findings,
        "indication": row.study.indication,
        "tags": list(row.study.tags),
        "patient": row.patient,
    }
    for view, confidence in zip(VIEWS, row.confidences, strict=True):
        image: StoredImage | None = getattr(row, view)
        encoded[f"{view}_confidence"] = confidence
        encoded[view] = None
        if image is not None:
            store.seek(image.start)
            encoded[view] = {"bytes": store.read(image.length), "path": None}
    return encoded
