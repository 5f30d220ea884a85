"""The model card of a run. Nothing in it is filled in by hand: its words are in the top-level `model_card.md`, its
figures come from the run's own files. Pushing it lives in `hf_cxr.hub`, the card of a dataset in `dataset_card`.
"""

from __future__ import annotations

import json
import os
import platform
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult

from hf_cxr import pipeline
from hf_cxr.arguments import KitArguments, TrainingArguments, resolved_config
from hf_cxr.evaluation import device_name
from hf_cxr.metrics import SCALARS
from hf_cxr.report import score_table

LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "huggingface_hub", "pillow")
# Arguments that are told elsewhere in a card, or that make no difference to the model.
NOT_IN_CARD = {"dataset", "output_dir", "encoder", "decoder", "num_proc", "log_samples", "share_samples", "do_eval"}


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("hf-cxr", *LIBRARIES)}


def training_facts(
    kit: KitArguments, args: TrainingArguments, split_sizes: dict[str, int], seconds: float
) -> dict[str, Any]:
    """What the card says of a run: data, recipe, environment. Paths are cut to their last part."""
    dataset = Path(kit.dataset)
    prepared = dataset / "prepare.json"
    account = json.loads(prepared.read_text(encoding="utf-8")) if prepared.is_file() else {}
    return {
        "dataset": account.get("source", dataset.name) if dataset.exists() else kit.dataset,
        "dataset_on_hub": not dataset.exists(),
        "account": account,
        "splits": split_sizes,
        "encoder": _part_name(kit.encoder),
        "decoder": _part_name(kit.decoder),
        "base_models": [part for part in (kit.encoder, kit.decoder) if "/" in part and not Path(part).exists()],
        "panel_size": kit.panel_size,
        "warmup_epochs": kit.findings_warmup_epochs,
        "epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "view_dropout": kit.view_dropout,
        "seed": args.seed,
        "recipe": {
            name: value
            for name, value in resolved_config(kit, args).items()
            if name not in NOT_IN_CARD
            and value is not None
            and (isinstance(value, (int, float)) or (isinstance(value, str) and "/" not in value))
        },
        "minutes": seconds / 60,
        "device": device_name(),
        "processes": args.world_size,
        "versions": library_versions(),
    }


def trained_facts(run: Path, args: TrainingArguments) -> dict[str, Any]:
    """What the run really did, from its own files: epochs, the step of the weights, whether stage one ran."""
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    best = state.get("best_global_step") if args.load_best_model_at_end else None
    return {
        "trained_epochs": round(state["epoch"] or 0, 2),
        "trained_steps": state["global_step"],
        "best_step": best,
        "warmed_up": (run / "findings_encoder").is_dir(),
        "calibrated": json.loads((run / "config.json").read_text(encoding="utf-8")).get(pipeline.CALIBRATION),
    }


def _part_name(part: str) -> str:
    return Path(part).name if Path(part).exists() else part


def card_template() -> str:
    """The text of `model_card.md`: beside the package when installed, at the top level in a checkout."""
    packaged = resources.files("hf_cxr") / "model_card.md"
    source = packaged if packaged.is_file() else Path(__file__).parents[1] / "model_card.md"
    return source.read_text(encoding="utf-8")


def write_model_card(run: str | os.PathLike, facts: dict[str, Any], report: dict[str, Any] | None) -> None:
    """Render the run's README.md from the template, its facts, and its report (`None`: "not evaluated")."""
    results = []
    if report:
        common = {
            "task_type": "image-to-text",
            "task_name": "Chest radiograph impression",
            "dataset_type": facts["dataset"],
            "dataset_name": facts["dataset"],
            "dataset_split": "test",
        }
        results = [
            EvalResult(metric_type=name, metric_name=name, metric_value=round(report[name], 4), **common)
            for name in SCALARS
            if name != "legacy_bleu4"  # without meaning; it is in report.json to read old tables
        ]
    data = ModelCardData(
        license="apache-2.0"
        if facts["dataset"] == "phantom"
        else None,  # else the data's licence has a say: the owner's
        language="en",
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["chest-radiograph", "radiology", "vision-encoder-decoder", "hf-cxr"],
        datasets=[facts["dataset"]] if facts["dataset_on_hub"] else None,
        base_model=facts["base_models"] or None,
        metrics=["bleu", "rouge"],
        model_name="hf-cxr impression",
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=card_template(),
        report=report,
        table=score_table(report) if report else None,
        **facts,
    )
    card.save(Path(run) / "README.md")
