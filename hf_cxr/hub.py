"""The Hub: the code that travels with a checkpoint, and pushing runs and datasets. Private unless told so.

The card of a run lives in `hf_cxr.card`, that of a dataset in `hf_cxr.dataset_card`.
"""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import HfApi

from hf_cxr import dicom, finding_places, finding_words, findings, pipeline, views

# The task name that travels in a checkpoint. It differs from the one that `import hf_cxr` registers, because
# transformers asks for `trust_remote_code=True` whenever a checkpoint carries code for the very task asked for.
REMOTE_TASK = "chest-radiograph-impression"
TRAVELLING = (pipeline, views, dicom, findings, finding_words, finding_places)

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
DATASET_FILES = ("data/*.parquet", "README.md", "prepare.json", "splits.csv")


def add_pipeline_code(model, folder: str | os.PathLike) -> None:
    """Put the pipeline's own files into `folder` and name them in the model's config, to be saved with it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for module in TRAVELLING:
        shutil.copyfile(str(module.__file__), Path(folder) / Path(str(module.__file__)).name)
    model.config.custom_pipelines = {
        REMOTE_TASK: {"impl": "pipeline.ImpressionPipeline", "pt": ["VisionEncoderDecoderModel"], "type": "multimodal"}
    }


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
