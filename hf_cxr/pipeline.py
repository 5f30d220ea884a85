"""The `cxr-impression` pipeline: two radiographs in, an impression out. Research use only, not for diagnosis.

This file, `views.py`, `dicom.py` and `findings.py` travel with a checkpoint as its remote code, so it imports nothing
else of the kit and makes no network calls of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline, VisionEncoderDecoderModel
from transformers.pipelines import PIPELINE_REGISTRY

from .findings import positive_findings
from .views import pack_views

VIEWS = ("frontal", "lateral")


def generate(model, pixel_values: torch.Tensor, **generate_kwargs) -> dict[str, torch.Tensor]:
    """Generate token sequences for a batch of canvases.

    Args:
        pixel_values: (batch, channels, height, width), normalised by the checkpoint's image processor.
        generate_kwargs: passed on to `model.generate`; its `generation_config` gives the defaults.

    Returns `sequences` (batch, texts, length) and `scores` (batch, texts). A score is the probability that the model
    gives to the whole text: the product of its tokens' probabilities.
    """
    with torch.inference_mode():
        output = model.generate(
            pixel_values.to(model.device, model.dtype),
            return_dict_in_generate=True,
            output_scores=True,
            **generate_kwargs,
        )
        log_probabilities = model.compute_transition_scores(
            output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
        )
    tokens = output.sequences[:, -log_probabilities.shape[1] :]
    written = (tokens != model.generation_config.pad_token_id) & torch.isfinite(log_probabilities)
    scores = log_probabilities.float().masked_fill(~written, 0.0).sum(1).exp()
    batch = len(pixel_values)
    return {
        "sequences": output.sequences.reshape(batch, -1, output.sequences.shape[1]).cpu(),
        "scores": scores.reshape(batch, -1).cpu(),
    }


def decode(tokenizer, sequences: torch.Tensor, scores: torch.Tensor) -> list[dict[str, Any]]:
    """The texts of one study, (texts, length) and (texts,), as `[{"impression": str, "score": float}]`."""
    texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return [{"impression": text.strip(), "score": score} for text, score in zip(texts, scores.tolist(), strict=True)]


class ImpressionPipeline(Pipeline):
    """Write the impression of a study from its frontal and lateral view.

    A study is a dict with `frontal` and `lateral` (either may be missing or None) or a (frontal, lateral) tuple; a
    list is many studies. A view is a path, bytes, a PIL image, a numpy array or a DICOM file.

    Returns `[{"impression": str, "score": float}]` for a study: `num_return_sequences` of them.
    """

    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = True
    _load_tokenizer = True
    _pipeline_calls_generate = False  # options go straight to `generate`

    def _sanitize_parameters(self, return_findings: bool | None = None, **generate_kwargs):
        options = ("max_new_tokens", "num_beams", "num_return_sequences", "do_sample", "temperature", "top_p", "top_k")
        unknown = sorted(set(generate_kwargs) - set(options) - {"generate_kwargs"})
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; there are return_findings, {', '.join(options)}")
        generate_kwargs |= generate_kwargs.pop("generate_kwargs", {})
        postprocess = {} if return_findings is None else {"return_findings": return_findings}
        return {}, generate_kwargs, postprocess

    def preprocess(self, study) -> dict[str, torch.Tensor]:
        frontal, lateral = _views_of(study)
        size = self.image_processor.size["height"]
        canvas = pack_views(frontal, lateral, size=size)
        return {"pixel_values": self.image_processor(canvas, return_tensors="pt")["pixel_values"]}

    def _forward(self, inputs, **generate_kwargs):
        return generate(self.model, inputs["pixel_values"], **generate_kwargs)

    def postprocess(self, outputs, return_findings: bool = False) -> list[dict[str, Any]]:
        rows = decode(self.tokenizer, outputs["sequences"][0], outputs["scores"][0])
        if return_findings:
            rows = [row | {"findings": sorted(positive_findings(row["impression"], sided=True))} for row in rows]
        return rows


def _views_of(study) -> tuple[Any, Any]:
    if isinstance(study, Mapping):
        unknown = sorted(set(study) - set(VIEWS))
        if unknown or not study:
            raise ValueError(f"a study has the keys 'frontal' and 'lateral', not {unknown or 'none at all'}")
        return study.get("frontal"), study.get("lateral")
    if isinstance(study, (tuple, list)) and len(study) == len(VIEWS):
        return study[0], study[1]
    raise ValueError("a study is a dict with 'frontal' and 'lateral' or a (frontal, lateral) pair, not a single image")


if __package__ == "hf_cxr":  # not when this file came with a checkpoint
    PIPELINE_REGISTRY.register_pipeline(
        "cxr-impression", pipeline_class=ImpressionPipeline, pt_model=VisionEncoderDecoderModel, type="multimodal"
    )
