"""The `datasets` builder: studies → pictures sized for training → rows.

It has a file of its own, without `open` or `Path`, because `datasets` replaces these names in the module of a builder.
What is kept is decided in `hf_cxr.splits`; writing a dataset folder is `hf_cxr.dataset`.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets

from hf_cxr import sources, splits
from hf_cxr.reports import Study
from hf_cxr.views import UnreadableImage, ViewSource, read_radiograph, shrink

FEATURES = datasets.Features(
    {
        "uid": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "impression": datasets.Value("string"),
        "findings": datasets.Value("string"),
        "indication": datasets.Value("string"),
        "tags": datasets.List(datasets.Value("string")),
    }
)
READABLE = "with readable images"


@dataclass
class StudyConfig(datasets.BuilderConfig):
    """What `StudyBuilder` builds; the fields are the arguments of `hf_cxr.prepare`."""

    source: str = "phantom"
    options: dict[str, Any] = field(default_factory=dict)
    """What the source itself takes: `root`, `num_studies`, …"""
    section: str = "impression"
    size: int = 384
    scars: str = "drop"
    seed: int = 0
    split_file: str | None = None

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The name of the cache folder: it follows the source's files, so a changed collection is built anew."""
        listed = sources.studies(self.source, **self.options)
        mark = splits.fingerprint(listed, self.split_file)
        return super().create_config_id(config_kwargs | {"fingerprint": mark}, custom_features)


class StudyBuilder(datasets.GeneratorBasedBuilder):
    """Builds any source as a dataset, in several processes if `download_and_prepare(num_proc=…)` says so.

    Beside the data it leaves `account.json` (the waterfall) and `rejects.jsonl` in its cache folder.
    """

    BUILDER_CONFIG_CLASS = StudyConfig
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory; two pictures of 384 pixels take about 200 kB

    config: StudyConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        config, folder = self.config, self._output_dir
        for left_over in pathlib.Path(folder).glob("rejects-*.jsonl"):  # of a build that was killed
            left_over.unlink()
        self.plan = splits.plan(
            sources.studies(config.source, **config.options),
            config.section,
            config.scars,
            config.seed,
            config.split_file,
        )
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"studies": studies, "folder": folder})
            for name, studies in self.plan.splits.items()
        ]

    def _generate_examples(self, studies: list[Study], folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for study in studies:
            try:
                yield study.uid, encode_study(study, self.config.size)
            except UnreadableImage as error:
                reject = {"uid": study.uid, "step": READABLE, "reason": str(error)}
                with pathlib.Path(folder, f"rejects-{os.getpid()}.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(reject, ensure_ascii=False) + "\n")

    def _download_and_prepare(self, dl_manager: Any, verification_mode: Any, **prepare_splits_kwargs: Any) -> None:
        super()._download_and_prepare(dl_manager, verification_mode, **prepare_splits_kwargs)
        folder, plan = pathlib.Path(self._output_dir), self.plan
        unreadable = []
        for part in sorted(folder.glob("rejects-*.jsonl")):
            unreadable += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
            part.unlink()
        rejects = sorted(plan.rejects + unreadable, key=lambda reject: plan.order[reject["uid"]])
        counts = {name: self.info.splits[name].num_examples for name in splits.SPLITS}
        if not any(counts.values()):
            raise ValueError(splits.nothing_left(len(plan.order), rejects))
        kept = plan.steps[-1]["kept"] - len(unreadable)
        steps = [*plan.steps, {"step": READABLE, "kept": kept, "dropped": len(unreadable)}]
        if kept != sum(counts.values()) or len(plan.order) != kept + len(rejects):
            raise RuntimeError(f"the account does not close: {steps} against {counts} and {len(rejects)} rejects")
        account = {"steps": steps, "splits": counts}
        (folder / "account.json").write_text(json.dumps(account), encoding="utf-8")
        lines = (json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
        (folder / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
        self.info.description = splits.format_waterfall(account)


def encode_study(study: Study, size: int) -> dict[str, Any]:
    """A row of `FEATURES`. Pictures become 8-bit grey PNG (lossless), longer side at most `size` pixels.

    Raises `UnreadableImage`, with the name of the view, of the file without its folder, and what is wrong with it.
    """
    row: dict[str, Any] = {
        "uid": study.uid,
        "frontal": None,
        "lateral": None,
        "impression": study.impression,
        "findings": study.findings,
        "indication": study.indication,
        "tags": list(study.tags),
    }
    for name in ("frontal", "lateral"):
        view: ViewSource | None = getattr(study, name)
        if view is None:
            continue
        try:
            image = shrink(read_radiograph(view, at_least=2 * size), size)
        except UnreadableImage as error:
            reason = str(error)
            if isinstance(view, (str, pathlib.PurePath)):
                reason = reason.replace(str(view), os.path.split(view)[1])
            raise UnreadableImage(f"{name}: {reason}") from error
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=False, compress_level=6)
        row[name] = {"bytes": buffer.getvalue(), "path": None}
    return row
