"""The model card of a run: its words are in the top-level `model_card.md`, its numbers come from the run's own files:
`card.json` (what training knew), `report.json`, `predictions.jsonl` and `config.json`. Nothing is filled in by hand.

Its tables live in `model_card_tables` and `hf_cxr.evaluation.report`, pushing it in `hf_cxr.hub.push`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HTTPError
from huggingface_hub.repocard_data import EvalResult

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments, resolved_config
from hf_cxr.data.collection import INDIANA, collection_of
from hf_cxr.data.licences import known_licence, stated_licence
from hf_cxr.evaluation.report import tables
from hf_cxr.evaluation.report.figures import CARD_FIGURES, draw_png
from hf_cxr.evaluation.report.page import sentences
from hf_cxr.hub import model_card_tables
from hf_cxr.hub.ancestors import SYNTHETIC, is_synthetic, split_otherwise, trainings
from hf_cxr.inference import checks
from hf_cxr.inference.minimum_risk import RISK
from hf_cxr.inference.sections import LAYOUT
from hf_cxr.metrics.study import SCALARS
from hf_cxr.models.modeling import DECODER_SIZES, ENCODER_SIZES
from hf_cxr.utils.files import json_object, packaged, replace_files
from hf_cxr.utils.plots import percent

FACTS, CARD, FIGURES = "card.json", "README.md", "figures"
WRITTEN = "card_sha256"  # in card.json: of README.md as it was written, to tell whether it was edited since
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
# Score → the Hub's name of the kind of metric, where it has one; the name in `report.json` is the metric's own.
METRIC_TYPES = {
    **dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4", "sentence_bleu4"), "bleu"),
    **{"rougeL": "rouge", "meteor": "meteor", "exact_match": "exact_match", "normal_accuracy": "accuracy"},
    **{"finding_precision_micro": "precision", "finding_recall_micro": "recall"},
    **{name: "f1" for name in SCALARS if name.startswith("finding_f1")},
}
METRIC_NAMES = {"legacy_bleu4": "legacy_bleu4 (without meaning, to read old tables)"}
LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "huggingface_hub", "pillow")
# Arguments that are told elsewhere in a card, or that make no difference to the model.
NOT_IN_CARD = {
    *("dataset", "output_dir", "encoder", "decoder", "num_proc", "log_samples", "share_samples", "do_eval"),
    *("push_to_hub", "hub_strategy", "hub_private_repo", "hub_always_push"),
}


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("hf-cxr", *LIBRARIES)}


def training_facts(
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    data: dict[str, Any],
    split_sizes: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    """What the card says of a run: data (`dataset_facts` and `ancestors`, of when it began), recipe, environment.
    Paths are cut to their last part."""
    inherited = (name for one in data.get("continued_from", ()) for name in one["base_models"])
    return {
        "folder": _as_given(Path(args.output_dir)),
        **data,
        "splits": split_sizes,
        "encoder": _part_name(kit.init_from or kit.encoder),
        "decoder": _part_name(kit.init_from or kit.decoder),
        "base_models": list(dict.fromkeys((*_base_models(kit), *inherited))),
        "from_scratch": kit.encoder in ENCODER_SIZES
        and kit.decoder in DECODER_SIZES
        and not (kit.init_from or args.resume_from_checkpoint),
        "panel_size": kit.panel_size,
        "panels": kit.panels,
        "findings_pretraining_epochs": kit.findings_pretraining_epochs,
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "view_dropout": kit.view_dropout,
        "seed": args.seed,
        "recipe": {
            name: value
            for name, value in resolved_config(kit, args).items()
            if name not in NOT_IN_CARD
            and (isinstance(value, (int, float)) or (isinstance(value, str) and "/" not in value))
        },
        "minutes": seconds / 60,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU ({torch.get_num_threads()} threads)",
        "machine": f"{platform.system()} {platform.machine()}",
        "processes": args.world_size,
        "versions": library_versions(),
    }


def trained_facts(run: Path, args: ImpressionTrainingArguments) -> dict[str, Any]:
    """What the run really did, from its own files: epochs, the step of the weights, whether stage one ran."""
    state, judged = _json(run / "trainer_state.json"), _json(run / "findings_pretraining.json")
    reward = _json(run / "reward.json")
    if reward:
        state = _json(run / "fine_tuned" / "trainer_state.json")
    kept = next(row for row in judged["epochs"] if row["epoch"] == judged["kept_epoch"]) if judged else None
    return {
        "trained_epochs": round(state["epoch"] or 0, 2),
        "trained_steps": state["global_step"],
        "best_step": state.get("best_global_step") if args.load_best_model_at_end else None,
        "findings_pretrained": (run / "findings_encoder").is_dir(),
        "reward": reward,
        "findings_kept": {**kept, "findings": len(kept["findings"])} if kept else None,
    }


def _base_models(kit: ImpressionConfig) -> list[str]:
    """The parts that came from the Hub, each once."""
    return [part for part in _parts(kit) if re.fullmatch(HUB_ID, part) and not Path(part).exists()]


def _parts(kit: ImpressionConfig) -> list[str]:
    """What is not made from scratch, each once."""
    sizes = {*ENCODER_SIZES, *DECODER_SIZES}
    parts = [kit.init_from] if kit.init_from else dict.fromkeys((kit.encoder, kit.decoder))
    return [part for part in parts if part not in sizes]


def starting_points(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> list[str]:
    """What a run takes its weights from, but for the encoders and decoders of the Hub."""
    parts = [part for part in _parts(kit) if kit.init_from or Path(part).exists()]
    return [args.resume_from_checkpoint, *parts] if args.resume_from_checkpoint else parts


def _as_given(folder: Path) -> str:
    """A folder as the user named it, unless that tells of the machine: then its last part."""
    private = folder.is_absolute() or ".." in folder.parts or str(folder).startswith("~")
    return folder.resolve().name if private or not folder.name else folder.as_posix()


def dataset_facts(dataset: str, revision: str | None = None) -> dict[str, Any]:
    """`dataset` (the source of a prepared folder, else a Hub id), `dataset_on_hub`, `preparation` (its prepare.json),
    `licence` (as the card of a folder states it, or `None`).

    Args:
        revision: of a dataset on the Hub, its newest if `None`.
    """
    folder, preparation, licence = Path(dataset), _preparation(dataset, revision), None
    on_hub = not folder.exists() and bool(re.fullmatch(HUB_ID, dataset))
    with contextlib.suppress(ValueError):  # a card whose head is broken: that matters to who publishes the data
        licence = stated_licence(folder) or None
    return {
        "dataset": dataset if on_hub else preparation.get("source", folder.name),
        "dataset_on_hub": on_hub,
        "preparation": preparation,
        "licence": licence,
    }


def _preparation(dataset: str, revision: str | None) -> dict[str, Any]:
    """The prepare.json of a folder or of a dataset on the Hub; empty where it has none."""
    file = Path(dataset) / "prepare.json"
    try:
        if not Path(dataset).exists():
            file = Path(hf_hub_download(dataset, file.name, repo_type="dataset", revision=revision))
        return json_object(file)
    except (OSError, ValueError, HTTPError):
        return {}


def evaluated_on(
    run: str | os.PathLike, dataset: str, split: str, dataset_revision: str | None = None
) -> dict[str, Any]:
    """The facts of a run whose report is now one of this dataset and split.

    Raises `FileNotFoundError` for what left no facts: a checkpoint of others, or a run of an earlier version.
    """
    facts, data = _json(Path(run) / FACTS), dataset_facts(dataset, dataset_revision)
    if facts is None:
        raise FileNotFoundError(
            f"{Path(run) / FACTS}: not there, so the card is left as it was; the report is written (hf-cxr did not "
            "train this checkpoint, or an earlier version did)"
        )
    ours, theirs = (one["preparation"].get("splits_sha256") for one in (facts, data))
    own = ours == theirs if ours and theirs else facts["dataset"] == data["dataset"]
    source = data["preparation"].get("source")
    return facts | {"evaluated_on": {"dataset": data["dataset"], "split": split, "own": own, "source": source}}


def _part_name(part: str) -> str:
    return Path(part).name if Path(part).exists() else part


def card_template() -> str:
    """The text of `model_card.md`."""
    return packaged("model_card.md").read_text(encoding="utf-8")


def write_model_card(run: str | os.PathLike, facts: Mapping[str, Any] | None = None) -> None:
    """Write the run's README.md, its figures, and `facts` as card.json (`None`: those that are there), all or none."""
    folder = Path(run)
    facts = dict(_facts_of(folder) if facts is None else facts)
    report = _json(folder / "report.json")
    images = {f"{FIGURES}/{name}.png": image for name, image in (draw_png(report) if report else {}).items()}
    text = _card(folder, facts, report, images, None)
    facts[WRITTEN] = _sha256(text)
    replace_files(folder, {**images, FACTS: json.dumps(facts, indent=2, ensure_ascii=False) + "\n", CARD: text})
    for name in {f"{FIGURES}/{name}.png" for name in CARD_FIGURES} - set(images):
        (folder / name).unlink(missing_ok=True)


def card_text(run: str | os.PathLike, repo_id: str | None = None) -> str:
    """The card of a run from its own files; without a report it says "not evaluated".

    Args:
        repo_id: the repository named in the snippet; without it the run's folder, as it was trained into.

    Raises `FileNotFoundError` for a run without `card.json`, as those of earlier versions are.
    """
    folder = Path(run)
    there = [name for name in (f"{FIGURES}/{name}.png" for name in CARD_FIGURES) if (folder / name).is_file()]
    return _card(folder, _facts_of(folder), _json(folder / "report.json"), there, repo_id)


def is_edited(run: str | os.PathLike) -> bool:
    """Whether somebody changed the run's README.md since it was written."""
    there, written = (Path(run) / CARD).read_text(encoding="utf-8"), _facts_of(Path(run)).get(WRITTEN)
    return _sha256(there) != written  # earlier versions kept no sum: what they wrote is kept as well


def with_repository(text: str, run: str | os.PathLike, repo_id: str) -> str:
    """An edited card whose snippet names the repository instead of the run's folder."""
    return text.replace(f'pipeline(model="{_facts_of(Path(run))["folder"]}"', f'pipeline(model="{repo_id}"')


def _facts_of(folder: Path) -> dict[str, Any]:
    facts = _json(folder / FACTS)
    if facts is None:
        raise FileNotFoundError(f"{folder / FACTS}: not there; the run was trained by an earlier version of hf-cxr")
    return facts


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _card(
    folder: Path,
    facts: dict[str, Any],
    report: Mapping[str, Any] | None,
    figures: Collection[str],
    repo_id: str | None,
) -> str:
    source = facts["preparation"].get("source")
    in_training = {"dataset": facts["dataset"], "split": "test", "own": True, "source": source}
    scored_on = in_training | facts.get("evaluated_on", {})
    if report:
        scored_on["split"] = report.get("split", scored_on["split"])
    config = _json(folder / "config.json") or {}
    layout = config.get(LAYOUT) or {"sections": ["impression"], "context": []}
    overlap = facts["preparation"].get("text_overlap") or {}
    collection = collection_of(facts["preparation"])
    shown = {
        "calibrated": config.get(checks.CALIBRATION),
        "risk": config.get(RISK),
        "search": config.get(checks.SEARCH),
        "sections": layout["sections"],
        "context": [tables.TITLES.get(name, name) for name in layout["context"]],
        "given": [name for name in layout["context"] if name != "age_sex"],
        "text_overlap": {name: counts for name, counts in overlap.items() if counts["same"] or counts["near"]},
        "parameters": model_card_tables.parameters(folder),
        "repo": repo_id or facts["folder"],
        "scored_on": scored_on,
        "report": report,
        "synthetic": is_synthetic(facts),
        "split_otherwise": split_otherwise(facts),
        "synthetic_alone": _is_synthetic_alone(facts),
        "collection": collection,
        "indiana": any(collection_of(one["preparation"]).name == INDIANA.name for one in trainings(facts)),
        "licences": dict.fromkeys(map(known_licence, trainings(facts))),
    }
    if report:
        written = folder / "predictions.jsonl"
        rows = [json.loads(line) for line in written.read_text("utf-8").splitlines()] if written.is_file() else []
        # Not those of a model that learned from patients, either: it may know their reports by heart.
        show_texts = is_synthetic(facts) and scored_on["source"] in SYNTHETIC
        shown |= {
            "score_table": tables.score_table(report),
            "probe_table": (cells := tables.probe_cells(report)) and tables.table(*cells),
            "scope": tables.scope(report),
            "extra_tables": {title: tables.table(*cells) for title, cells in tables.extra_tables(report).items()},
            "every_score": tables.every_score(report),
            "counts": model_card_tables.finding_counts(report),
            "finding_table": tables.finding_table(report),
            "subgroups_table": tables.subgroups_table(report),
            "failures": model_card_tables.failures(rows, show_texts),
            "show_texts": show_texts,
            "sentences": sentences(report),
            "figures": [name for name in CARD_FIGURES if f"{FIGURES}/{name}.png" in figures],
            "alt": CARD_FIGURES,
            "percent": percent,
        }
    data = _metadata(facts, report, scored_on, repo_id)
    card = ModelCard.from_template(data, template_str=card_template(), **facts | shown)
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _is_synthetic_alone(facts: Mapping[str, Any]) -> bool:
    """Whether a model has seen nothing but synthetic images, its pretrained parts included."""
    return is_synthetic(facts) and facts.get("from_scratch", not facts["base_models"])


def _metadata(
    facts: Mapping[str, Any], report: Mapping[str, Any] | None, scored_on: Mapping[str, Any], repo_id: str | None
) -> ModelCardData:
    """The YAML head. A licence is stated of what learned from the phantom alone: else that of the data and of the
    pretrained parts has a say, and the owner."""
    section = "findings" if report and report.get("target") == "findings" else "impression"
    values = {name: report[name] for name in tables.readable(report, SCALARS)} if report else {}
    if report and report["calibration"]:
        values["expected_calibration_error"] = report["calibration"]["ece_after"]
    if report and report["image_gain"]:
        by = report.get("gain_score", "finding_f1_micro")
        values[f"{by}_image_gain"] = report["image_gain"][by]
    results = [
        EvalResult(
            task_type="image-to-text",
            task_name=f"Chest radiograph {section}",
            dataset_type=re.sub(r"[^\w./-]+", "-", scored_on["dataset"]),  # the Hub refuses other signs
            dataset_name=scored_on["dataset"],
            dataset_split=scored_on["split"],
            metric_type=METRIC_TYPES.get(name, name),
            metric_name=METRIC_NAMES.get(name, name),
            metric_value=round(value, 4),
        )
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]
    return ModelCardData(
        license="apache-2.0" if _is_synthetic_alone(facts) else None,
        language=_language(facts["preparation"], report),
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["chest-radiograph", "radiology", "vision-encoder-decoder", "hf-cxr"],
        datasets=[facts["dataset"]] if facts["dataset_on_hub"] else None,
        base_model=facts["base_models"] or None,
        metrics=["bleu", "rouge", "f1"] if report else None,
        model_name=Path(repo_id or facts["folder"]).name,
        eval_results=results or None,
    )


def _language(preparation: Mapping[str, Any], report: Mapping[str, Any] | None) -> str | None:
    """That of the reports, as the collection or, where it does not, their words say; `None`: not known."""
    language = collection_of(preparation).language
    if report and language in (None, "en"):
        return None if "English" in (report.get("findings_unread") or "") else "en"
    return language


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
