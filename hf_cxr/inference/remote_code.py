"""The files that a checkpoint brings as its remote code, this one among them, and how they get there.

They import nothing else of the kit, and only the standard library, numpy, Pillow, torch, and transformers with its
huggingface_hub; this one the standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

# The task name in a checkpoint. It differs from the one that `import hf_cxr` registers, because
# transformers asks for `trust_remote_code=True` whenever a checkpoint carries code for the very task asked for.
REMOTE_TASK = "chest-radiograph-impression"
REMOTE_CODE_FILES = tuple(
    f"{name}.py"
    for name in (
        "pipeline answers generation minimum_risk processor targets sections inputs views decoding levels"
        " view_evidence view_weights dicom plausibility checks attention remote_code labeler labeler_lexicon"
        " labeler_location labeler_wording"
    ).split()
)


def add_code(folder: str | os.PathLike, layout: Any = None) -> None:
    """Put the remote code files into `folder` (those that lie beside this one: a processor alone brings no pipeline),
    and tell `AutoProcessor` of them, and of the model's `layout`. The file that does so is read by no other auto
    class: an `auto_map` in config.json would have all of them ask for remote code."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in REMOTE_CODE_FILES:
        if (file := Path(__file__).with_name(name)).is_file():
            shutil.copyfile(file, Path(folder) / name)
    auto = {"AutoProcessor": "processor.ImpressionProcessor"}
    config = {"auto_map": auto, "processor_class": "ImpressionProcessor"} | ({"layout": layout} if layout else {})
    (Path(folder) / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_pipeline_code(model: Any, folder: str | os.PathLike) -> None:
    """Put the remote code files into `folder` and name the pipeline in the model's config, to be saved with it."""
    add_code(folder, getattr(model.config, "cxr_layout", None))
    model.config.custom_pipelines = {
        REMOTE_TASK: {"impl": "pipeline.ImpressionPipeline", "pt": ["VisionEncoderDecoderModel"], "type": "multimodal"}
    }


def share_weights(folder: str | os.PathLike) -> None:
    """Let whoever may read a checkpoint's config.json read its weights too: safetensors writes them for their owner
    alone."""
    for weights in Path(folder).glob("*.safetensors"):
        shutil.copymode(Path(folder) / "config.json", weights)
