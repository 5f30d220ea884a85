"""The texts of a run in the forms that leaderboards and other kits read, and ReXrank's studies answered in ReXrank's
form. `FORMATS` names the public file that each form was read from (November 2026)."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.view_labels import view_of
from hf_cxr.evaluation.compare import read_predictions, texts_of_row
from hf_cxr.inference.pipeline import ImpressionPipeline
from hf_cxr.inference.sections import SECTIONS
from hf_cxr.inference.views import VIEWS
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.utils.files import replace_files
from hf_cxr.utils.progress import ProgressBar

BATCH = 8  # studies at once


class Said(NamedTuple):
    """A study: its uid and split, the radiologist's texts and those of the run, by section."""

    uid: str
    split: str
    truth: Mapping[str, str]
    said: Mapping[str, str]

    @property
    def pair(self) -> tuple[str, str]:
        """The radiologist's text and the run's, of the sections that the run writes."""
        sections = [name for name in SECTIONS if name in self.said]
        return " ".join(self.truth[name] for name in sections), " ".join(self.said[name] for name in sections)


def _rexrank(studies: Sequence[Said]) -> str:
    answered = {
        study.uid: {
            **{f"section_{name}": study.truth.get(name) or None for name in SECTIONS},
            "report": _headed({name: study.truth.get(name) or "None" for name in SECTIONS}),
            "split": study.split,
            "model_prediction": _headed(study.said),
        }
        for study in studies
    }
    return json.dumps(answered, indent=4, ensure_ascii=False) + "\n"


def _radeval(studies: Sequence[Said]) -> str:
    references, hypotheses = zip(*(study.pair for study in studies), strict=True)
    return json.dumps({"references": references, "hypotheses": hypotheses}, indent=2, ensure_ascii=False) + "\n"


def _cxrmate(studies: Sequence[Said]) -> str:
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow((*SECTIONS, "study_id"))
    rows.writerows((*(study.said.get(name, "") for name in SECTIONS), study.uid) for study in studies)
    return file.getvalue()


def _vlm(studies: Sequence[Said]) -> str:
    lines = []
    for study in studies:
        reference, prediction = study.pair
        row = {"question_id": study.uid, "text": prediction, "reference": reference, "prediction": prediction}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


FORMATS: dict[str, tuple[Callable[[Sequence[Said]], str], str]] = {
    "rexrank": (_rexrank, "rajpurkarlab/ReXrank: data/READMD.md, example_files/evaluation_script.md"),
    "radeval": (_radeval, "jbdel/RadEval: README.md, JSON Files"),
    "cxrmate": (_cxrmate, "aehrc/cxrmate: tools/metrics/report_logger.py; aehrc/cxrmate-2: loggers.py"),
    "vlm": (_vlm, "LLaVA-Rad: llava/eval/rrg_eval/run.py; haotian-liu/LLaVA: llava/eval/model_vqa_loader.py"),
}
"""Name → what makes the file, and where its form is documented."""


def export_predictions(form: str, run: str | os.PathLike, dataset: str | os.PathLike, out: str | os.PathLike) -> int:
    """Write the texts of a run's `predictions.jsonl` in one of the `FORMATS` to the file `out`; returns how many.

    Args:
        dataset: the prepared dataset that was evaluated: it gives the split and both sections of each study.

    Raises `FileNotFoundError` for a run without predictions, `ValueError` for an unknown form, and for studies that
    the dataset does not hold or holds with other texts.
    """
    if form not in FORMATS:
        raise ValueError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    rows = read_predictions(os.fspath(run))
    studies: dict[str, tuple[str, Mapping[str, str]]] = {}
    for split, part in load_prepared(os.fspath(dataset)).items():
        names = [name for name in ("uid", *SECTIONS) if name in part.column_names]
        studies |= {row["uid"]: (split, row) for row in part.select_columns(names) if row["uid"] in rows}
    told = []
    for uid, row in rows.items():
        texts = texts_of_row(row)
        split, truth = studies.get(uid, ("", {}))
        if any(truth.get(name) != reference for name, (reference, _) in texts.items()):
            what = "is not in" if not truth else "has another text in"
            raise ValueError(f"study {uid} of {run} {what} {dataset}: name the dataset that was evaluated")
        told.append(Said(uid, split, truth, {name: said for name, (_, said) in texts.items()}))
    _write(out, FORMATS[form][0](told))
    return len(told)


def answer_rexrank(
    checkpoint: str | os.PathLike,
    studies: str | os.PathLike,
    out: str | os.PathLike,
    images: str | os.PathLike | None = None,
) -> int:
    """Write what ReXrank asks of an `inference.py` (rajpurkarlab/ReXrank: example_files/submission_tutorial.md and
    merversa_inference.py): its JSON of studies, each with `model_prediction` added; returns how many.

    The frontal view is `key_image_path` or the first one, the lateral the first. A checkpoint that takes context gets
    the indication, comparison, age and sex in `context`.

    Args:
        images: the folder that `image_path` is relative to; default: that of the file.

    Raises `FileNotFoundError` for a file that is not there, `ValueError` for one that is not ReXrank's and for images
    that cannot be read.
    """
    try:
        known = json.loads(Path(studies).read_text(encoding="utf-8-sig"))
        folder = Path(images) if images is not None else Path(studies).parent
        asked = [_study(study, folder) for study in known.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{studies}: not a JSON file of ReXrank's studies ({error})") from None
    for uid, views in zip(known, asked, strict=True):
        if not views.keys() & {*VIEWS}:
            raise ValueError(f"{studies}: study {uid} lists no frontal and no lateral image")
    parts = load_checkpoint(checkpoint)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    answers = ProgressBar(pipe((views for views in asked), batch_size=BATCH), total=len(asked), desc="Writing")
    for study, answer in zip(known.values(), answers, strict=True):
        study["model_prediction"] = _headed({name: answer[0][name] for name in pipe.layout.sections})
    _write(out, json.dumps(known, indent=4) + "\n")
    return len(known)


def _study(study: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the pipeline reads of a study of ReXrank."""
    paths, key = study["image_path"], study.get("key_image_path")
    views = {path: view_of(word).view for path, word in zip(paths, study["frontal_lateral"], strict=True)}
    found: dict[str, Any] = {}
    for path in sorted(paths, key=lambda path: path != key):
        if (view := views[path]) in VIEWS and view not in found:
            if ".." in Path(path).parts:
                raise ValueError(f"{path} lies outside the folder of the images")
            found[view] = str(folder / path.lstrip("/"))
    return found | _context(study.get("context"))


def _context(told: Any) -> dict[str, Any]:
    """What the pipeline takes of "Age:50-60.Gender:M.Indication: Cough. Comparison: None."; a range of ages counts as
    its middle."""
    _, *cut = re.split("(Age|Gender|Indication|Comparison):", told if isinstance(told, str) else "")
    parts = {name.lower(): part.strip() for name, part in zip(cut[::2], cut[1::2], strict=True)}
    parts = {name: part for name, part in parts.items() if part.strip(". ") not in ("", "nan")}
    years = [float(year) for year in re.findall(r"\d+(?:\.\d+)?", parts.pop("age", ""))]
    sex = parts.pop("gender", "").strip(". ")
    return parts | ({"age": sum(years) / len(years)} if years else {}) | ({"sex": sex} if sex else {})


def _headed(texts: Mapping[str, str]) -> str:
    """The sections as ReXrank writes reports: "Findings: … Impression: …"."""
    return " ".join(f"{name.capitalize()}: {texts[name]}" for name in SECTIONS if name in texts)


def _write(out: str | os.PathLike, text: str) -> None:
    replace_files(Path(out).parent, {Path(out).name: text})
