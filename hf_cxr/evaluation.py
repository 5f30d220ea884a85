"""Generate over a split and say what the scores mean: floors, the image-shuffle test, intervals, and the report.

How a single score is computed lives in `hf_cxr.metrics`; how texts are generated in `hf_cxr.pipeline`.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from hf_cxr import metrics
from hf_cxr.canvases import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.modeling import Checkpoint, panel_size_of
from hf_cxr.pipeline import decode, generate

SCALARS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro")
SHUFFLES = 5
BOOTSTRAP_SAMPLES = 1000


def texts_of(dataset: DatasetDict, split: str) -> list[str]:
    """The target texts of a split; none where the dataset has no such split."""
    return list(dataset[split]["impression"]) if split in dataset else []


# --- generation --------------------------------------------------------------------------------------------------


def predict_split(
    checkpoint: Checkpoint, split: Dataset, batch_size: int = 32, num_proc: int | None = None, **generate_kwargs
) -> list[dict[str, Any]]:
    """Generate an impression for every study of a split, each exactly once, shared out over the running processes.

    Returns, in the order of the split and on every process, rows `{"uid", "impression", "prediction", "score"}`.
    """
    state = PartialState()
    panel_size = panel_size_of(checkpoint.image_processor)
    with state.local_main_process_first():
        packed = pack_dataset(split, panel_size, num_proc)
    canvases = CanvasDataset(packed, panel_size)
    collate = CanvasCollator(checkpoint.image_processor)
    model = checkpoint.model.eval().to(state.device)
    mine = list(range(state.process_index, len(canvases), state.num_processes))
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    rows = []
    for batch in tqdm(batches, desc="Generating", disable=not state.is_main_process):
        output = generate(model, collate([canvases[index] for index in batch])["pixel_values"], **generate_kwargs)
        for index, sequences, scores in zip(batch, output["sequences"], output["scores"], strict=True):
            best = decode(checkpoint.tokenizer, sequences, scores)[0]
            rows.append((index, best["impression"], best["score"]))
    if state.num_processes > 1:
        rows = gather_object(rows)
    uids, truths = split["uid"], split["impression"]
    return [
        {"uid": uids[index], "impression": truths[index], "prediction": text, "score": score}
        for index, text, score in sorted(rows)
    ]


# --- scores ------------------------------------------------------------------------------------------------------


def score_texts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of texts, by their `report.json` names. CIDEr is not computed yet: `None`."""
    return {
        **metrics.corpus_bleu(predictions, references),
        "rougeL": metrics.rouge_l(predictions, references),
        "cider": None,
        **metrics.finding_scores(predictions, references),
        **metrics.diversity(predictions),
    }


def best_constant(candidates: Sequence[str], references: Sequence[str]) -> str:
    """The candidate that, given as the answer to every study, has the highest corpus BLEU-4 against `references`."""
    reference_tokens = [metrics.tokenize_13a(text) for text in references]
    occurrences: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for tokens in reference_tokens:
        for ngram, count in metrics.ngrams(tokens).items():
            occurrences[ngram].append(count)
    reference_length, n = sum(map(len, reference_tokens)), len(references)
    best, best_score = "", -1.0
    for text in sorted(set(candidates)):
        tokens = metrics.tokenize_13a(text)
        totals = np.zeros(2 * metrics.MAX_ORDER + 2)
        for ngram, count in metrics.ngrams(tokens).items():
            totals[len(ngram) - 1] += sum(min(count, seen) for seen in occurrences[ngram])
        for order in range(metrics.MAX_ORDER):
            totals[metrics.MAX_ORDER + order] = n * max(0, len(tokens) - order)
        totals[-2:] = n * len(tokens), reference_length
        score = metrics.bleu_from_statistics(totals)[-1]
        if score > best_score:
            best, best_score = text, score
    return best


def floor_predictions(train: Sequence[str], validation: Sequence[str], n: int, seed: int) -> dict[str, list[str]]:
    """What image-blind guessers that know the training texts would write for `n` studies.

    The constant of highest BLEU-4 is chosen on the validation split (on the training split where there is none).
    """
    if not train:
        return {}
    rng = np.random.default_rng(seed)
    return {
        "most_frequent": [Counter(sorted(train)).most_common(1)[0][0]] * n,
        "best_constant": [best_constant(train, validation or train)] * n,
        "random_train": [train[index] for index in rng.integers(len(train), size=n)],
    }


def derangements(n: int, seed: int, count: int = SHUFFLES) -> Iterator[np.ndarray]:
    """Random permutations of `range(n)` that leave nothing in place (n ≥ 2)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        order = rng.permutation(n)  # one cycle through all: everybody gets the next one's
        permutation = np.empty(n, dtype=np.int64)
        permutation[order] = np.roll(order, 1)
        yield permutation


def shuffled_scores(predictions: Sequence[str], references: Sequence[str], seed: int) -> dict[str, float | None]:
    """The scores with images permuted among the studies, mean over `SHUFFLES` permutations.

    A text depends on its own image alone, so permuting the images is permuting the texts; no second pass is needed.
    """
    if len(predictions) < 2:
        return {}
    runs = [score_texts([predictions[i] for i in order], references) for order in derangements(len(predictions), seed)]
    return {name: None if runs[0][name] is None else float(np.mean([run[name] for run in runs])) for name in SCALARS}


def bootstrap(predictions: Sequence[str], references: Sequence[str], seed: int) -> dict[str, list[float]]:
    """95 % percentile intervals over resampled studies, and that of the gain in finding F1 over shuffled images."""
    n = len(predictions)
    if n < 2:
        return {}
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_SAMPLES)
    bleu = metrics.bleu_from_statistics(weights @ metrics.bleu_statistics(predictions, references))
    samples = {f"bleu{order}": bleu[:, order - 1] for order in range(1, metrics.MAX_ORDER + 1)}
    samples["rougeL"] = weights @ metrics.rouge_l_per_study(predictions, references) / n
    findings = metrics.finding_statistics(predictions, references).sum(1)
    samples["finding_f1_micro"] = metrics.f1(weights @ findings)
    order = next(derangements(n, seed, 1))
    shuffled = metrics.finding_statistics([predictions[i] for i in order], references).sum(1)
    samples["image_gain_finding_f1_micro"] = samples["finding_f1_micro"] - metrics.f1(weights @ shuffled)
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in samples.items()}


def validation_scores(predictions: Sequence[str], references: Sequence[str], seed: int = 0) -> dict[str, float]:
    """What is told of each evaluation during training: all scores that are numbers, `n`, `composite`, and
    `image_gain`, the gain in finding F1 over shuffled images, with its 95 % interval `image_gain_low`, `…_high`."""
    scores = score_texts(predictions, references)
    low, high = bootstrap(predictions, references, seed).get("image_gain_finding_f1_micro", [0.0, 0.0])
    shuffled = shuffled_scores(predictions, references, seed).get("finding_f1_micro") or 0.0
    gain = {"image_gain": scores["finding_f1_micro"] - shuffled, "image_gain_low": low, "image_gain_high": high}
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    return {"n": len(references)} | numbers | gain | {"composite": composite(scores | gain)}


def composite(scores: dict[str, Any]) -> float:
    """What the best checkpoint is best in: the mean of finding F1 (micro), image gain (at least 0) and BLEU-4.

    BLEU alone prefers a model that says one good sentence to everybody; such a model has no gain over shuffled images.
    """
    return (scores["finding_f1_micro"] + max(0.0, scores["image_gain"]) + scores["bleu4"]) / 3


def build_report(
    rows: Sequence[dict[str, Any]], train: Sequence[str], validation: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """The report of one split from its `predict_split` rows and the texts of the other two splits.

    Raises `ValueError` for a split without studies.
    """
    if not rows:
        raise ValueError("nothing to evaluate: the split holds no studies")
    predictions, references = [row["prediction"] for row in rows], [row["impression"] for row in rows]
    scores = score_texts(predictions, references)
    floors = {
        name: score_texts(texts, references)
        for name, texts in floor_predictions(train, validation, len(rows), seed).items()
    }
    shuffled = shuffled_scores(predictions, references, seed)
    gain = {
        name: scores[name] - value
        for name, value in shuffled.items()
        if value is not None and scores[name] is not None
    }
    report = {
        "n": len(rows),
        **scores,
        "floors": {
            name: {key: floor[key] for key in (*SCALARS, "distinct_outputs", "modal_output", "modal_share")}
            for name, floor in floors.items()
        },
        "shuffled": shuffled,
        "image_gain": gain,
        "ci95": bootstrap(predictions, references, seed),
        "signature": f"{metrics.SIGNATURE}; shuffled: mean of {SHUFFLES} permutations; "
        f"ci95: {BOOTSTRAP_SAMPLES} bootstrap samples of studies; seed {seed}",
    }
    return report | {"verdict": verdict(report)}


def verdict(report: dict[str, Any]) -> str:
    """One plain sentence: does the model read the images, and is it better than one constant sentence?"""
    interval = report["ci95"].get("image_gain_finding_f1_micro")
    if interval is None:
        return "Too few studies to say whether the model reads the images."
    gain = report["image_gain"]["finding_f1_micro"]
    figures = f"{gain:+.2f} finding F1 over shuffled images, 95 % CI {interval[0]:+.2f} to {interval[1]:+.2f}"
    if interval[0] <= 0:
        return f"Does not read the images ({figures})."
    floor = max((scores["bleu4"] for scores in report["floors"].values()), default=0.0)
    beats = "better" if report["bleu4"] > floor else "no better"
    return (
        f"Reads the images: yes ({figures}); BLEU-4 {report['bleu4']:.3f}, {beats} than a blind guesser's {floor:.3f}."
    )


# --- the report on paper -----------------------------------------------------------------------------------------


def score_table(report: dict[str, Any]) -> str:
    """A Markdown table: the model, every floor, and the model with shuffled images, side by side."""
    columns = {"BLEU-1": "bleu1", "BLEU-4": "bleu4", "ROUGE-L": "rougeL"}
    columns |= {"finding F1 (micro)": "finding_f1_micro", "finding F1 (macro)": "finding_f1_macro"}
    rows = {"**model**": report, "model, images shuffled": report["shuffled"]}
    names = {
        "most_frequent": "floor: most frequent training impression",
        "best_constant": "floor: constant of best BLEU-4 on validation",
        "random_train": "floor: random training impression",
    }
    rows |= {names.get(name, name): floor for name, floor in report["floors"].items()}
    cell: Callable[[float | None], str] = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cell(scores.get(key)) for key in columns.values()) + " |"
        for name, scores in rows.items()
    ]
    return "\n".join(lines)


def report_markdown(report: dict[str, Any]) -> str:
    """The report as a page of Markdown."""
    lines = [f"# {report['verdict']}", "", f"{report['n']} studies. Research use only, not for diagnosis.", ""]
    lines += [score_table(report), ""]
    lines += [
        f"{report['distinct_outputs']} distinct outputs; the commonest goes to {report['modal_share']:.0%} of the "
        f"studies: “{report['modal_output']}”",
        "",
        "| finding | n | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    for name, scores in sorted(report["per_finding"].items(), key=lambda item: -item[1]["n"]):
        cells = ("–" if scores[key] is None else f"{scores[key]:.2f}" for key in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {scores['n']} | " + " | ".join(cells) + " |")
    if report["ci95"]:
        lines += ["", "| score | 95 % interval |", "|---|---|"]
        lines += [f"| {name} | {low:.3f} to {high:.3f} |" for name, (low, high) in report["ci95"].items()]
    return "\n".join([*lines, "", f"Signature: {report['signature']}", ""])


def write_report(report: dict[str, Any], rows: Sequence[dict[str, Any]], out: str | os.PathLike) -> None:
    """Write `report.json`, `report.md` and `predictions.jsonl` into the folder `out`, each whole or not at all."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        "report.md": report_markdown(report),
        "predictions.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }
    for name, text in files.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)


def evaluate(
    checkpoint: Checkpoint,
    dataset: DatasetDict,
    split: str = "test",
    out: str | os.PathLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **generate_kwargs,
) -> dict[str, Any]:
    """Evaluate a checkpoint on one split of a prepared dataset and return the report; write it to `out` if given."""
    if split not in dataset:
        raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(dataset)}")
    rows = predict_split(checkpoint, dataset[split], batch_size, **generate_kwargs)
    report = build_report(rows, texts_of(dataset, "train"), texts_of(dataset, "validation"), seed)
    settings = {"max_new_tokens": checkpoint.model.generation_config.max_new_tokens, "num_beams": 1} | generate_kwargs
    report["signature"] += f"; split {split}" + "".join(f"; {name} {value}" for name, value in settings.items())
    if out is not None and PartialState().is_main_process:
        write_report(report, rows, out)
    return report


def device_name() -> str:
    """What the figures were measured on, for the card."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"
