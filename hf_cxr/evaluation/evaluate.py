"""What a model's scores mean: the report of a checkpoint on one split, with baselines, the image-shuffle test and
intervals. Its parts are the modules beside this one; how a single score is computed lives in `hf_cxr.metrics`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_cxr import metrics
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sections import with_sections
from hf_cxr.evaluation import bootstrap, calibration, context_use
from hf_cxr.evaluation.baselines import CONSTANTS, NEAREST, blind_predictions, nearest_predictions, oracle_predictions
from hf_cxr.evaluation.clinical import Clinical, add_clinical
from hf_cxr.evaluation.fitting import calibration_for, correct, fit_calibration, fit_minimum_risk, fit_search
from hf_cxr.evaluation.image_use import composite as composite
from hf_cxr.evaluation.image_use import constant_gain, image_shuffle, permutation_p
from hf_cxr.evaluation.image_use import validation_scores as validation_scores
from hf_cxr.evaluation.prediction import (
    Canvases,
    Writer,
    Written,
    mean_canvas,
    views_shown,
    without,
)
from hf_cxr.evaluation.probes import Probe, fit_probes, probe_scores
from hf_cxr.evaluation.probes import signature as probe_signature
from hf_cxr.evaluation.report import write_report
from hf_cxr.evaluation.report.tables import SCORES
from hf_cxr.evaluation.report.verdict import rewarded, verdict
from hf_cxr.evaluation.study_rows import patients_of, rows_of, scored_sections, study_rows, truths
from hf_cxr.evaluation.study_rows import texts_of as texts_of
from hf_cxr.evaluation.subgroups import subgroups, with_subgroups
from hf_cxr.inference.answers import calibrated
from hf_cxr.inference.checks import SEARCH, TUNED, panels_of
from hf_cxr.inference.minimum_risk import RISK, settings_of
from hf_cxr.inference.sections import layout_of
from hf_cxr.models.modeling import Checkpoint, load_checkpoint, weights_digest
from hf_cxr.utils.progress import ProgressBar

NEAREST_STUDIES = 10_000  # of a larger training split so many are drawn for the nearest-neighbour baseline
OF_SEARCH = ("num_beams", "do_sample", "early_stopping", "length_penalty", "temperature", "top_k", "top_p")
NO_SETTINGS = ("token_id", "transformers_version", "_from_model_config")  # of a generation config


# --- the report --------------------------------------------------------------------------------------------------


def build_report(
    rows: Sequence[dict[str, Any]],
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    seed: int = 0,
    nearest: Mapping[str, Sequence[str]] | None = None,
    inputs: Mapping[str, tuple[Sequence[int], Sequence[str]]] | None = None,
    calibrated: dict[str, Any] | None = None,
    section: str = "impression",
    shuffled: Mapping[str, Sequence[Sequence[str]]] | None = None,
    probes: Mapping[str, Probe] | None = None,
) -> dict[str, Any]:
    """The report of one section on one split, all but generation.

    Args:
        rows: `{"uid", "impression", "prediction"}`, and where known `patient`, `views`, `projection`, `context`, of
            every study.
        train, validation: the texts of the other two splits, which baselines know.
        nearest: name → texts of nearest-neighbour baselines (see `baselines.nearest_predictions`).
        inputs: name → (rows, texts) that the model wrote from other input, as from one view alone.
        calibrated: the report's `calibration` part.
        section: whose texts these are: the key of the radiologist's in `rows`.
        shuffled: of a model with context, the texts of `context_use.write_shuffled`.
        probes: name → what a linear probe says of the studies (see `probes.fit_probes`).

    Raises `ValueError` for a split without studies.
    """
    if not rows:
        raise ValueError("nothing to evaluate: the split holds no studies")
    predictions, references = [row["prediction"] for row in rows], [row[section] for row in rows]
    patients = [str(row.get("patient", row["uid"])) for row in rows]
    with ProgressBar(total=6, desc="Scoring", disable=not PartialState().is_main_process) as progress:
        statistics = metrics.study_statistics(predictions, references)
        report = {"n": len(rows), "patients": len(set(patients)), **metrics.score_sheet(statistics, predictions)}
        report["distinct_references"] = len(set(references))
        progress.update()
        baselines = blind_predictions(train, validation, len(rows), seed) | dict(nearest or {})
        report["baselines"] = {name: _baseline_scores(texts, references, train) for name, texts in baselines.items()}
        unread, by = metrics.unread_findings(references), metrics.gain_score(references)
        knowing = oracle_predictions(train, references) if train and not unread else []
        report["oracle"] = _baseline_scores(knowing, references, train) if knowing else {}
        probes = {} if unread else dict(probes or {})
        report["probes"] = {
            name: probe_scores(probe, references, statistics, patients, seed) for name, probe in probes.items()
        }
        progress.update()
        permuted: dict[str, Any] = {"shuffled": {}, "image_gain": {}, "image_gain_ci95": {}, "image_gain_p": {}}
        if len(rows) > 1:
            permuted = image_shuffle(statistics, predictions, references, patients, seed)
        if shuffled is not None:
            permuted = context_use.gains(statistics, rows, references, shuffled, permuted, patients, seed)
        report |= permuted
        report |= {"findings_unread": unread, "gain_score": by}
        report["permutation_p"] = permutation_p(statistics, predictions, references, by, seed)
        constants = {name: baselines[name] for name in CONSTANTS if name in baselines}
        report |= constant_gain(statistics, constants, report["baselines"], references, by, patients, seed)
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
        views, projections = [row.get("views", "both") for row in rows], [row.get("projection", "") for row in rows]
        report["subgroups"] = subgroups(statistics, references, views, patients, seed, projections, bool(unread))
        progress.update()
    report["calibration"] = calibrated
    report["signature"] = (
        f"{metrics.signature()}; shuffled: mean of {bootstrap.SHUFFLES} permutations; ci95: percentiles of "
        f"{bootstrap.BOOTSTRAP_SAMPLES} bootstrap samples of patients; permutation p: "
        f"{SCORES[by]}, {bootstrap.PERMUTATIONS} permutations; seed {seed}{probe_signature(probes)}"
    )
    if shuffled is not None:
        report["signature"] += context_use.signature()
    return report | verdict(report)


def _baseline_scores(texts: Sequence[str], references: Sequence[str], train: Sequence[str]) -> dict[str, Any]:
    """A baseline's scores. A text that one training study alone has is not told: reports are shared."""
    scores = metrics.study_statistics(texts, references).scores() | metrics.diversity(texts)
    return scores if train.count(scores["modal_output"]) > 1 else scores | {"modal_output": None}


# --- a checkpoint on a split -------------------------------------------------------------------------------------


def evaluate(
    checkpoint: str | os.PathLike | Checkpoint,
    dataset: str | os.PathLike | DatasetDict,
    split: str = "test",
    out: str | os.PathLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    probes: bool = True,
    target: str | None = None,
    clinical: Clinical | None = None,
    pooled: Mapping[bytes, np.ndarray] | None = None,
    **generate_kwargs,
) -> dict[str, Any]:
    """Evaluate a checkpoint on one split of a prepared dataset and return the report; write it to `out` if given.

    The model writes once for the split as it is, once more for each view alone, and once from the mean training
    image; one with context also for shuffled images, shuffled context, without context and from the context alone
    (see `context_use`). Its encoder reads the training split, or a sample of a large one, for the nearest-neighbour
    baseline and the linear probes. No text is written twice. Studies that lack a section which the model writes are
    left out and counted. A checkpoint without a calibration is calibrated on the validation split for this report
    alone.

    Args:
        checkpoint, dataset: a folder, a Hub id, or what `load_checkpoint` and `load_prepared` give.
        out: the folder for `report.json`, `report.html`, `predictions.jsonl` and figures.
        batch_size: studies generated at once.
        seed: of permutations, samples of the training split and bootstrap samples.
        revision, dtype: as in `load_checkpoint`; a checkpoint that is loaded already stays as it is.
        probes: also score linear probes (see `probes`).
        target: "impression" or "findings", of a checkpoint that others made: which of the radiologist's texts its own
            is held against. Default: what the checkpoint says, or the impression.
        clinical: the clinical metrics that are wanted too (see `clinical`), of the section that it is judged by.
        pooled: what is known already of `Writer.pooled`, so that these canvases need not be encoded.
        generate_kwargs: passed on to `model.generate`, as `num_beams` or `max_new_tokens`; the checkpoint's
            `generation_config` gives the others, as in the pipeline. With `decode="mbr"` a checkpoint without
            thresholds of minimum risk gets some from the validation split for this report alone, and with
            `decode="tuned"` the settings of the search are chosen there (see `fitting.fit_search`).

    Raises `FileNotFoundError` where there is no such checkpoint or dataset, `ValueError` for a split that is absent or
    empty, for a `target` that is not what the checkpoint writes, and for weights that change meanwhile.
    """
    if split == "validation" and generate_kwargs.get("decode") == "tuned":
        raise ValueError("decode tuned chooses on the validation split; evaluate another one")
    if isinstance(dataset, (str, os.PathLike)):
        dataset = load_prepared(os.fspath(dataset))
    if split not in dataset:
        raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(dataset)}")
    if not len(dataset[split]):
        raise ValueError(f"nothing to evaluate: the split {split!r} holds no studies")
    if out is not None and Path(out).exists() and not Path(out).is_dir():  # told before any time is spent
        raise FileExistsError(f"{out}: is a file, not a folder to write the report to")
    run = out if isinstance(checkpoint, Checkpoint) else checkpoint
    checkpoint, check = _opened(checkpoint, out, revision, dtype)
    writer = Writer(checkpoint, batch_size, generate_kwargs, target, pooled=dict(pooled or {}))
    dataset, left_out = with_sections(dataset, writer.layout)
    studies, train = dataset[split], _sample(dataset.get("train", dataset[split].select([])), seed)
    if not len(studies):
        raise ValueError(f"nothing to evaluate: no study of the split {split!r} has {_asked(writer)}")
    if clinical and PartialState().is_main_process:
        clinical.begin(len(studies))
    with _fitted(writer, dataset, seed):
        report, rows = _scored(writer, dataset, split, train, seed, probes, clinical)
        report |= {"split": split, "dtype": str(checkpoint.model.dtype).removeprefix("torch.")}
        report["panels"] = panels_of(checkpoint.image_processor)
        report["nearest_among"] = {"studies": len(train), "of": len(dataset.get("train", ()))}
        told = _settings(writer, report)
    if missing := {name: number for name, number in left_out.items() if number}:
        report["left_out"] = missing
    for part in (report, *report.get("sections", {}).values()):
        part["signature"] += told
    if run is not None:
        report |= rewarded(report, Path(run))
    if out is not None and PartialState().is_main_process:
        check()
        write_report(report, rows, out, images=lambda index: (studies[index]["frontal"], studies[index]["lateral"]))
    return report


@contextmanager
def _fitted(writer: Writer, dataset: DatasetDict, seed: int) -> Iterator[None]:
    """For this report: thresholds of minimum risk, where it is asked for and the checkpoint has none, or settings of
    the search."""
    config, asked = vars(writer.model.config), writer.generate_kwargs.get("decode")
    own = {name: config[name] for name in (RISK, SEARCH) if name in config}
    if asked == "mbr" and own.get(RISK) is None:
        fit_minimum_risk(writer, dataset.get("validation", ()))
    if asked == "tuned":
        best, config[SEARCH] = fit_search(writer, dataset.get("validation", ()), validation_scores, seed)
        writer.generate_kwargs = {**writer.generate_kwargs, "decode": "search", **best}
    try:
        yield
    finally:
        for name in (RISK, SEARCH):
            config.pop(name, None)
        config.update(own)


def _asked(writer: Writer) -> str:
    return " and ".join(f"{'findings' if name == 'findings' else f'an {name}'}" for name in writer.layout.sections)


def _scored(
    writer: Writer,
    dataset: DatasetDict,
    split: str,
    train: Dataset,
    seed: int,
    probes: bool,
    clinical: Clinical | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of every section, that of the top one above the others, and the rows of `predictions.jsonl`."""
    studies, layout = dataset[split], writer.layout
    canvases, prompts = writer.canvases(studies), writer.prompts(studies)
    written = writer.write(canvases.canvas, range(len(canvases)), prompt=prompts.__getitem__)
    views = views_shown(canvases)
    curve, source, fitted_here = calibration_for(writer, dataset, split)
    probabilities = [text.probability for text in written]
    scores = calibrated(curve, probabilities, [text.truncated for text in written])
    rows = with_subgroups(study_rows(studies, layout, written, scores, views), layout.top)
    shuffled = context_use.write_shuffled(writer, canvases, prompts, seed) if layout.context else None
    inputs = _other_inputs(writer, train, canvases, prompts, written, views)
    embeddings = _embeddings(writer, train, canvases)
    nearest = {name: embeddings[name] for name in NEAREST if embeddings}
    seen = {"encoder": "encoder", "pixels": "nearest_pixels"} if probes and embeddings else {}
    probed = {name: embeddings[of] for name, of in seen.items()}
    reports, top = {}, layout.top
    for section in scored_sections(layout):
        references, said = truths(studies, section), [text.of(section) for text in written]
        confidence = None
        if curve and section == top:
            right = [correct(text, truth) for text, truth in zip(said, references, strict=True)]
            confidence = calibration.assess(probabilities, scores, right, source, curve["n"], fitted_here)
        said_shuffled = shuffled if shuffled is None else context_use.texts_of_section(shuffled, section)
        known = texts_of(dataset, "train", section), texts_of(dataset, "validation", section)
        reports[section] = build_report(
            rows_of(rows, references, said, section),
            *known,
            seed,
            nearest=nearest_predictions(truths(train, section), nearest),
            inputs={name: (chosen, [text.of(section) for text in texts]) for name, (chosen, texts) in inputs.items()},
            calibrated=confidence,
            section=section,
            shuffled=said_shuffled,
            probes=fit_probes(truths(train, section), patients_of(train), probed, seed),
        )
        if clinical and section == top and PartialState().is_main_process:
            anew = (said_shuffled or {}).get("image", [None])[0]
            blind = blind_predictions(*known, len(rows), seed)
            add_clinical(reports[top], rows, clinical, top, blind, seed, anew)
    report = {"target": layout.target, **({"context": list(layout.context)} if layout.context else {}), **reports[top]}
    return report | ({"sections": reports} if len(reports) > 1 else {}), rows


def _opened(
    checkpoint: str | os.PathLike | Checkpoint,
    out: str | os.PathLike | None,
    revision: str | None,
    dtype: str | torch.dtype | None,
) -> tuple[Checkpoint, Callable[[], None]]:
    """The checkpoint, and a check that its folder still holds the weights that were loaded and `out` no others: a run
    may be trained anew meanwhile. One that is loaded already is not checked."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint, lambda: None
    before = weights_digest(checkpoint)

    def check() -> None:
        if out is not None and weights_digest(out) not in (None, before):
            raise ValueError(f"{out}: holds weights that are not those of this report; evaluate again, or elsewhere")
        if weights_digest(checkpoint) != before:
            raise ValueError(f"{checkpoint}: its weights changed meanwhile, so no report is written; evaluate again")

    check()
    return load_checkpoint(checkpoint, revision, dtype), check


def _settings(writer: Writer, report: Mapping[str, Any]) -> str:
    """What the signature says of how texts were made: the split, and every setting of `generate` that counts."""
    own = writer.model.generation_config
    settings = {"max_new_tokens": own.max_new_tokens, "num_beams": own.num_beams or 1}
    given = [(name, value) for name, value in own.to_diff_dict().items() if not name.endswith(NO_SETTINGS)]
    settings |= {name: value for name, value in given if value or name in TUNED}
    if risk := settings_of(writer.model.config, writer.generate_kwargs):
        settings = {name: value for name, value in settings.items() if name not in OF_SEARCH}
        settings |= {"decode": "mbr", "samples": risk["samples"]}
    settings |= {**writer.generate_kwargs, "dtype": report["dtype"]}
    told = "".join(f"; {name} {value}" for name, value in settings.items())
    told += f"; {tuned}" if (tuned := getattr(writer.model.config, SEARCH, None)) and not risk else ""
    told += "; one view of each study" if report["panels"] == 1 else ""
    among = report["nearest_among"]
    if among["studies"] < among["of"]:
        told += f"; nearest study and mean image: of {among['studies']} training studies drawn from {among['of']}"
    return f"; split {report['split']}{told}"


def _sample(train: Dataset, seed: int) -> Dataset:
    """`NEAREST_STUDIES` of a larger split, drawn at random, in its order."""
    if len(train) <= NEAREST_STUDIES:
        return train
    return train.select(np.sort(np.random.default_rng(seed).choice(len(train), NEAREST_STUDIES, replace=False)))


def calibrate(
    checkpoint: Checkpoint, dataset: DatasetDict, batch_size: int = 32, **generate_kwargs
) -> dict[str, Any] | None:
    """Fit the map from a text's probability to its `score` on the validation split; `None` where that is too small or
    findings cannot be read from its texts."""
    dataset, _ = with_sections(dataset, layout_of(checkpoint.model.config))
    return fit_calibration(Writer(checkpoint, batch_size, generate_kwargs), dataset)


def _embeddings(writer: Writer, train: Dataset, canvases: Canvases) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the nearest training study is found by, and the probes see: of the training studies, and of these."""
    if not len(train):
        return {}
    there = writer.embed(writer.canvases(train), "Encoding training studies")
    here = writer.embed(canvases)
    return {name: (there[name], here[name]) for name in here}


def _other_inputs(
    writer: Writer,
    train: Dataset,
    canvases: Canvases,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Written],
    views: Sequence[str],
) -> dict[str, tuple[Sequence[int], Sequence[Written]]]:
    """What the model writes from the mean image and, for studies with both views, from each view alone; with context
    also from the images alone, and from the mean image and the context."""
    mean = mean_canvas(writer.canvases(train) if len(train) else canvases)
    [constant] = writer.write(lambda _: mean, [0], "Mean image")
    everybody, two = range(len(written)), [index for index, shown in enumerate(views) if shown == "both"]
    inputs: dict[str, tuple[Sequence[int], Sequence[Written]]] = {"mean_image": (everybody, [constant] * len(written))}
    if writer.layout.context:
        inputs["without_context"] = everybody, writer.write(canvases.canvas, everybody, "No context")
        inputs["context_only"] = (
            everybody,
            writer.write(lambda _: mean, everybody, "Context only", prompts.__getitem__),
        )
    if two:
        inputs["both_views"] = (two, [written[index] for index in two])
        for view, other in (("frontal", "lateral"), ("lateral", "frontal")):
            alone = writer.write(
                lambda index, other=other: without(canvases.canvas(index), other),  # type: ignore[misc]
                two,
                f"{view.capitalize()} only",
                prompts.__getitem__,
            )
            inputs[f"{view}_only"] = (two, alone)
    return inputs
