"""Cards, and pushing to the Hub. Nothing is public unless told so, and nothing in a card is filled in by hand.

The words of the model card are in the top-level `model_card.md`; the figures come from the run's own files.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult

from hf_cxr import dicom, finding_places, finding_words, findings, pipeline, views
from hf_cxr.arguments import KitArguments, TrainingArguments, resolved_config
from hf_cxr.evaluation import device_name
from hf_cxr.metrics import SCALARS
from hf_cxr.report import score_table

# The task name that travels in a checkpoint. It differs from the one that `import hf_cxr` registers, because
# transformers asks for `trust_remote_code=True` whenever a checkpoint carries code for the very task asked for.
REMOTE_TASK = "chest-radiograph-impression"
TRAVELLING = (pipeline, views, dicom, findings, finding_words, finding_places)
LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "huggingface_hub", "pillow")

# What a pushed run consists of. Predictions hold the reports of the collection, so they stay at home.
RUN_FILES = (
    *(
        "*.safetensors",
        "*.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("pipeline.py", "views.py", "dicom.py", "findings.py", "finding_*.py", "README.md", "report.json", "report.md"),
)
# Arguments that are told elsewhere in a card, or that make no difference to the model.
NOT_IN_CARD = {"dataset", "output_dir", "encoder", "decoder", "num_proc", "log_samples", "share_samples", "do_eval"}
DATASET_FILES = ("data/*.parquet", "README.md", "prepare.json", "splits.csv")


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("hf-cxr", *LIBRARIES)}


def add_pipeline_code(model, folder: str | os.PathLike) -> None:
    """Put the pipeline's own files into `folder` and name them in the model's config, to be saved with it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for module in TRAVELLING:
        shutil.copyfile(str(module.__file__), Path(folder) / Path(str(module.__file__)).name)
    model.config.custom_pipelines = {
        REMOTE_TASK: {"impl": "pipeline.ImpressionPipeline", "pt": ["VisionEncoderDecoderModel"], "type": "multimodal"}
    }


# --- model card --------------------------------------------------------------------------------------------------


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


# --- push --------------------------------------------------------------------------------------------------------


def push(folder: str | os.PathLike, repo_id: str, public: bool = False, revision: str | None = None) -> str:
    """Upload a run or a prepared dataset in one commit and return its address. Private unless `public`.

    Raises `FileNotFoundError` for a folder that is neither, `ValueError` for a public push of a dataset whose licence
    forbids it.
    """
    path = Path(folder)
    is_model, is_dataset = (path / "config.json").is_file(), (path / "prepare.json").is_file()
    if not is_model and not is_dataset:
        raise FileNotFoundError(f"{folder}: neither a checkpoint (config.json) nor a prepared dataset (prepare.json)")
    licence = _licence(path)
    if is_dataset and public and (not licence or "-nd" in licence.lower()):
        raise ValueError(
            f"{folder}: its licence ({licence or 'unknown'}) forbids sharing derivatives such as resized images; "
            "push it without --public"
        )
    kind = "model" if is_model else "dataset"
    api = HfApi()
    repo = api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True)
    if not public and not api.repo_info(repo.repo_id, repo_type=kind).private:
        raise ValueError(f"{repo_id}: this repository is public already; push with --public, or choose another")
    api.upload_folder(
        repo_id=repo.repo_id,
        repo_type=kind,
        folder_path=path,
        allow_patterns=list(RUN_FILES if is_model else DATASET_FILES),
        ignore_patterns=["checkpoint-*", "checkpoint-*/**", "findings_warmup/**"],
        commit_message=f"Push {kind} with hf-cxr {version('hf-cxr')}",
        revision=revision,
    )
    return str(repo)


def _licence(folder: Path) -> str:
    parts = (
        (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        if (folder / "README.md").is_file()
        else []
    )
    return str((yaml.safe_load(parts[1]) or {}).get("license", "")) if len(parts) == 3 else ""
