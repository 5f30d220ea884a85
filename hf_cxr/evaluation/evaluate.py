"""What a model's scores mean: the report of a checkpoint on one split, with baselines, the image-shuffle test and
intervals. Its parts are the modules beside this one; how a single score is computed lives in `hf_cxr.metrics`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_cxr import metrics
from hf_cxr.data.collator import CanvasDataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import bootstrap, calibration
from hf_cxr.evaluation.baselines import blind_predictions, nearest_predictions, oracle_predictions
from hf_cxr.evaluation.prediction import embed, mean_canvas, open_canvases, views_of, without, write_texts
from hf_cxr.evaluation.report import write_report
from hf_cxr.evaluation.report.tables import best_blind
from hf_cxr.evaluation.subgroups import subgroups
from hf_cxr.inference.checks import curve_of
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.pipeline import calibrated
from hf_cxr.metrics import SCALARS
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.utils.progress import ProgressBar

READS_P = 0.01  # the permutation test's p above which a model is not said to read the images


def texts_of(dataset: DatasetDict, split: str) -> list[str]:
    """The target texts of a split; none where the dataset has no such split."""
    return list(dataset[split]["impression"]) if split in dataset else []


# --- during training ---------------------------------------------------------------------------------------------


def validation_scores(
    predictions: Sequence[str], references: Sequence[str], patients: Sequence[Any] | None = None, seed: int = 0
) -> dict[str, float]:
    """What is told of each evaluation during training: every scalar, `n`, `distinct_outputs`, `modal_share`,
    `composite`, and `image_gain`, the gain in finding F1 over shuffled images, with its 95 % interval
    `image_gain_low`, `image_gain_high`."""
    statistics = metrics.study_statistics(predictions, references)
    scores = statistics.scores() | metrics.diversity(predictions)
    numbers = {name: float(scores[name]) for name in (*SCALARS, "distinct_outputs", "modal_share")}
    name, gain = "finding_f1_micro", {"image_gain": 0.0, "image_gain_low": 0.0, "image_gain_high": 0.0}
    if len(predictions) > 1:
        shuffle = _image_shuffle(statistics, predictions, references, patients or range(len(predictions)), seed)
        low, high = shuffle["image_gain_ci95"].get(name, (0.0, 0.0))
        gain = {"image_gain": shuffle["image_gain"][name], "image_gain_low": low, "image_gain_high": high}
    return {"n": len(references)} | numbers | gain | {"composite": composite(numbers | gain)}


def composite(scores: Mapping[str, float]) -> float:
    """What the best checkpoint is best in: the mean of finding F1 (micro), image gain (at least 0) and BLEU-4.

    BLEU alone prefers a model that says one good sentence to everybody; such a model has no gain over shuffled images.
    """
    return (scores["finding_f1_micro"] + max(0.0, scores["image_gain"]) + scores["bleu4"]) / 3


def _image_shuffle(
    statistics: metrics.Statistics,
    predictions: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Any],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`bootstrap.image_gain` of texts. A text depends on its own image alone: permuting images permutes texts."""
    shuffled = [
        metrics.study_statistics([predictions[i] for i in order], references)
        for order in bootstrap.derangements(len(predictions), seed)
    ]
    return bootstrap.image_gain(statistics, shuffled, patients, seed)


# --- the report --------------------------------------------------------------------------------------------------


def build_report(
    rows: Sequence[dict[str, Any]],
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    seed: int = 0,
    nearest: Mapping[str, Sequence[str]] | None = None,
    inputs: Mapping[str, tuple[Sequence[int], Sequence[str]]] | None = None,
    calibrated: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of one split, all but generation.

    Args:
        rows: `{"uid", "impression", "prediction"}`, and where known `patient` and `views`, of every study.
        train, validation: the texts of the other two splits, which baselines know.
        nearest: name → texts of nearest-neighbour baselines (see `baselines.nearest_predictions`).
        inputs: name → (rows, texts) that the model wrote from other input, as from one view alone.
        calibrated: the report's `calibration` part.

    Raises `ValueError` for a split without studies.
    """
    if not rows:
        raise ValueError("nothing to evaluate: the split holds no studies")
    predictions, references = [row["prediction"] for row in rows], [row["impression"] for row in rows]
    patients = [str(row.get("patient", row["uid"])) for row in rows]
    with ProgressBar(total=6, desc="Scoring", disable=not PartialState().is_main_process) as progress:
        statistics = metrics.study_statistics(predictions, references)
        report = {"n": len(rows), "patients": len(set(patients)), **metrics.score_sheet(statistics, predictions)}
        progress.update()
        baselines = blind_predictions(train, validation, len(rows), seed) | dict(nearest or {})
        report["baselines"] = {name: _baseline_scores(texts, references, train) for name, texts in baselines.items()}
        report["oracle"] = _baseline_scores(oracle_predictions(train, references), references, train) if train else {}
        progress.update()
        report |= (
            _image_shuffle(statistics, predictions, references, patients, seed)
            if len(rows) > 1
            else {"shuffled": {}, "image_gain": {}, "image_gain_ci95": {}, "image_gain_p": {}}
        )
        counts = statistics.findings
        stated, true = counts[..., :2].sum(-1) > 0, counts[..., ::2].sum(-1) > 0
        report["permutation_p"] = bootstrap.permutation_p(stated, true, seed) if true.any() else None
        progress.update()
        report["ci95"] = bootstrap.study_intervals(statistics, patients, seed)
        bounds = bootstrap.finding_intervals(statistics, patients, seed)
        for name, row in report["per_finding"].items():
            row["ci95"] = bounds.get(name)
        progress.update()
        report["inputs"] = {
            name: {"n": len(chosen)} | metrics.study_statistics(texts, [references[i] for i in chosen]).scores()
            for name, (chosen, texts) in (inputs or {}).items()
        }
        progress.update()
        views = [row.get("views", "both") for row in rows]
        report["subgroups"] = subgroups(statistics, references, views, patients, seed)
        progress.update()
    report["calibration"] = calibrated
    report["signature"] = (
        f"{metrics.signature()}; shuffled: mean of {bootstrap.SHUFFLES} permutations; ci95: percentiles of "
        f"{bootstrap.BOOTSTRAP_SAMPLES} bootstrap samples of patients; permutation p: finding F1 (micro), "
        f"{bootstrap.PERMUTATIONS} permutations; seed {seed}"
    )
    return report | verdict(report)


def _baseline_scores(texts: Sequence[str], references: Sequence[str], train: Sequence[str]) -> dict[str, Any]:
    """A baseline's scores. A text that one training patient alone has is not told: reports are shared."""
    scores = metrics.study_statistics(texts, references).scores() | metrics.diversity(texts)
    return scores if train.count(scores["modal_output"]) > 1 else scores | {"modal_output": None}


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """`reads_images` (true, false, or `None`: cannot be told) and `verdict`, one plain sentence that says so.

    A model reads the images if the 95 % interval of its gain in finding F1 over shuffled images lies above zero and
    the permutation test of the same has p ≤ 0.01.
    """
    interval, p = report["image_gain_ci95"].get("finding_f1_micro"), report["permutation_p"]
    if interval is None:
        return {"reads_images": None, "verdict": "Too few studies to say whether the model reads the images."}
    if p is None:
        return {
            "reads_images": None,
            "verdict": "No text of this split states a finding, so whether the model reads the images cannot be told.",
        }
    reads = interval[0] > 0 and p <= READS_P
    gain = report["image_gain"]["finding_f1_micro"]
    sentence = (
        f"{'Reads the images: yes' if reads else 'Does not read the images'} ({gain:+.2f} finding F1 over shuffled "
        f"images, 95 % CI {interval[0]:+.2f} to {interval[1]:+.2f}, permutation p = {p:.3f})"
    )
    if best := best_blind(report, "bleu4"):
        beats = "better" if report["bleu4"] > best[1] else "no better"
        sentence += f"; BLEU-4 {report['bleu4']:.3f}, {beats} than an image-blind baseline's {best[1]:.3f}"
    return {"reads_images": reads, "verdict": f"{sentence}."}


# --- a checkpoint on a split -------------------------------------------------------------------------------------


def evaluate(
    checkpoint: str | os.PathLike | Checkpoint,
    dataset: str | os.PathLike | DatasetDict,
    split: str = "test",
    out: str | os.PathLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **generate_kwargs,
) -> dict[str, Any]:
    """Evaluate a checkpoint on one split of a prepared dataset and return the report; write it to `out` if given.

    The model writes once for the split as it is, once more for each view alone, and once from the mean training
    image; its encoder reads the training split for the nearest-neighbour baseline. A checkpoint without a calibration
    is calibrated on the validation split for this report alone.

    Args:
        checkpoint, dataset: a folder, a Hub id, or what `load_checkpoint` and `load_prepared` give.
        out: the folder for `report.json`, `report.html`, `predictions.jsonl` and figures.
        batch_size: studies generated at once.
        seed: of permutations and bootstrap samples.
        generate_kwargs: passed on to `model.generate`, as `num_beams`.

    Raises `FileNotFoundError` where there is no such checkpoint or dataset, `ValueError` for a split that is absent or
    empty.
    """
    if isinstance(dataset, (str, os.PathLike)):
        dataset = load_prepared(os.fspath(dataset))
    if split not in dataset:
        raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(dataset)}")
    studies = dataset[split]
    if not len(studies):
        raise ValueError(f"nothing to evaluate: the split {split!r} holds no studies")
    if out is not None and Path(out).exists() and not Path(out).is_dir():  # told before any time is spent
        raise FileExistsError(f"{out}: is a file, not a folder to write the report to")
    if isinstance(checkpoint, (str, os.PathLike)):
        checkpoint = load_checkpoint(checkpoint)
    canvases = open_canvases(checkpoint, studies)
    written = write_texts(checkpoint, canvases.canvas, range(len(canvases)), batch_size, **generate_kwargs)
    views = [views_of(canvases.canvas(index)) for index in range(len(canvases))]
    curve, source = _calibration_for(checkpoint, dataset, split, batch_size, generate_kwargs)
    probabilities = [probability for _, probability in written]
    rows = _rows(studies, written, calibrated(curve, probabilities), views)
    scores, correct = [row["score"] for row in rows], [_correct(row["prediction"], row["impression"]) for row in rows]
    report = build_report(
        rows,
        texts_of(dataset, "train"),
        texts_of(dataset, "validation"),
        seed,
        nearest=_nearest(checkpoint, dataset, canvases, batch_size),
        inputs=_other_inputs(checkpoint, dataset, canvases, rows, batch_size, generate_kwargs),
        calibrated=calibration.assess(probabilities, scores, correct, source, curve["n"]) if curve else None,
    )
    report["split"] = split
    settings = {"max_new_tokens": checkpoint.model.generation_config.max_new_tokens, "num_beams": 1} | generate_kwargs
    report["signature"] += f"; split {split}" + "".join(f"; {name} {value}" for name, value in settings.items())
    if out is not None and PartialState().is_main_process:
        write_report(report, rows, out, images=lambda index: (studies[index]["frontal"], studies[index]["lateral"]))
    return report


def _rows(
    studies: Dataset, written: Sequence[tuple[str, float]], scores: Sequence[float], views: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per study for `predictions.jsonl`, with what its text gets right and wrong."""
    patients = studies["patient"] if "patient" in studies.column_names else studies["uid"]
    rows = []
    columns = zip(studies["uid"], patients, studies["impression"], views, written, scores, strict=True)
    for uid, patient, truth, shown, (text, probability), score in columns:
        there, stated = (positive_findings(said, sided=True) for said in (truth, text))
        rows.append(
            {
                "uid": uid,
                "patient": patient,
                "impression": truth,
                "prediction": text,
                "score": score,
                "sequence_probability": probability,
                "views": shown,
                "matched": sorted(there & stated),
                "missed": sorted(there - stated),
                "invented": sorted(stated - there),
            }
        )
    return rows


def _correct(text: str, truth: str) -> bool:
    """The event of `calibration.EVENT`."""
    return positive_findings(text, sided=True) == positive_findings(truth, sided=True)


def calibrate(
    checkpoint: Checkpoint, dataset: DatasetDict, batch_size: int = 32, **generate_kwargs
) -> dict[str, Any] | None:
    """Fit the map from a text's probability to its `score` on the validation split; `None` where that is too small."""
    if len(dataset.get("validation", ())) < calibration.MIN_STUDIES:
        return None
    studies = dataset["validation"]
    canvases = open_canvases(checkpoint, studies)
    everybody = range(len(canvases))
    written = write_texts(checkpoint, canvases.canvas, everybody, batch_size, "Calibrating", **generate_kwargs)
    correct = [_correct(text, truth) for (text, _), truth in zip(written, studies["impression"], strict=True)]
    return calibration.fit([probability for _, probability in written], correct)


def _calibration_for(
    checkpoint: Checkpoint, dataset: DatasetDict, split: str, batch_size: int, generate_kwargs: dict[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The checkpoint's own calibration, or one fitted now, never on the very split that is evaluated."""
    if own := curve_of(checkpoint.model.config):
        return own, "checkpoint"
    fitted = None if split == "validation" else calibrate(checkpoint, dataset, batch_size, **generate_kwargs)
    return fitted, "validation split"


def _nearest(
    checkpoint: Checkpoint, dataset: DatasetDict, canvases: CanvasDataset, batch_size: int
) -> dict[str, list[str]]:
    """The texts of the two baselines that copy the nearest training study."""
    if not len(dataset.get("train", ())):
        return {}
    train = embed(checkpoint, open_canvases(checkpoint, dataset["train"]), batch_size, "Encoding the training split")
    here = embed(checkpoint, canvases, batch_size, "Encoding")
    return nearest_predictions(texts_of(dataset, "train"), {name: (train[name], here[name]) for name in here})


def _other_inputs(
    checkpoint: Checkpoint,
    dataset: DatasetDict,
    canvases: CanvasDataset,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    generate_kwargs: dict[str, Any],
) -> dict[str, tuple[Sequence[int], Sequence[str]]]:
    """What the model writes from the mean image and, for studies with both views, from each view alone."""
    seen = open_canvases(checkpoint, dataset["train"]) if len(dataset.get("train", ())) else canvases
    mean = mean_canvas(seen)
    [(constant, _)] = write_texts(checkpoint, lambda _: mean, [0], 1, "Mean image", **generate_kwargs)
    everybody, two = range(len(rows)), [index for index, row in enumerate(rows) if row["views"] == "both"]
    inputs: dict[str, tuple[Sequence[int], Sequence[str]]] = {"mean_image": (everybody, [constant] * len(rows))}
    if two:
        inputs["both_views"] = (two, [rows[index]["prediction"] for index in two])
        for view, other in (("frontal", "lateral"), ("lateral", "frontal")):
            written = write_texts(
                checkpoint,
                lambda index, other=other: without(canvases.canvas(index), other),  # type: ignore[misc]
                two,
                batch_size,
                f"{view.capitalize()} only",
                **generate_kwargs,
            )
            inputs[f"{view}_only"] = (two, [text for text, _ in written])
    return inputs
