"""The `cxr-impression` pipeline: two radiographs in, an impression out. Research use only, not for diagnosis.

This file travels with a checkpoint as its remote code, together with `views.py`, `dicom.py`, `findings.py` and what
that reads (`finding_words.py`, `finding_places.py`). They import nothing else of the kit and make no network calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, VisionEncoderDecoderModel
from transformers.pipelines import PIPELINE_REGISTRY

from .findings import positive_findings
from .views import pack_views

VIEWS = ("frontal", "lateral")
CALIBRATION = "cxr_calibration"  # where a checkpoint's config carries what a score is worth


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


def calibrated(curve: Mapping[str, Any] | None, probabilities: Sequence[float]) -> list[float]:
    """What a text's probability is worth: the chance that its findings are exactly the radiologist's, by the curve
    that `hf_cxr.calibration` fitted on the validation split; the probabilities as they are where there is none."""
    if not curve:
        return [float(value) for value in probabilities]
    return np.interp(probabilities, curve["x"], curve["y"]).tolist()


class ImpressionPipeline(Pipeline):
    """Write the impression of a study from its frontal and lateral view.

    A study is a dict with `frontal` and `lateral` (either may be missing or None) or a (frontal, lateral) tuple; a
    list is many studies. A view is a path, bytes, a PIL image, a numpy array or a DICOM file.

    Returns `[{"impression": str, "score": float}]` for a study: `num_return_sequences` of them. A `score` is the
    chance that the text states exactly the findings that a radiologist would, as seen on the validation split, or,
    where the checkpoint carries no such calibration, the text's probability under the model.

    Options are those of `generate` named below, `return_findings` (adds the labels read from the text), and
    `abstain_below` (a text of a lower score is withheld: `{"impression": None, "score": …, "abstained": True}`).
    """

    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = True
    _load_tokenizer = True
    _pipeline_calls_generate = False  # options go straight to `generate`

    def _sanitize_parameters(
        self, return_findings: bool | None = None, abstain_below: float | None = None, **generate_kwargs
    ):
        options = ("max_new_tokens", "num_beams", "num_return_sequences", "do_sample", "temperature", "top_p", "top_k")
        unknown = sorted(set(generate_kwargs) - set(options) - {"generate_kwargs"})
        if unknown:
            ours = "return_findings, abstain_below"
            raise TypeError(f"unknown option {unknown[0]!r}; there are {ours}, {', '.join(options)}")
        generate_kwargs |= generate_kwargs.pop("generate_kwargs", {})
        if abstain_below is not None and not 0 <= abstain_below <= 1:
            raise ValueError(f"abstain_below is between 0 and 1, not {abstain_below}")
        given = {"return_findings": return_findings, "abstain_below": abstain_below}
        return {}, generate_kwargs, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, study) -> dict[str, torch.Tensor]:
        frontal, lateral = _views_of(study)
        size = self.image_processor.size["height"]
        canvas = pack_views(frontal, lateral, size=size)
        return {"pixel_values": self.image_processor(canvas, return_tensors="pt")["pixel_values"]}

    def _forward(self, inputs, **generate_kwargs):
        return generate(self.model, inputs["pixel_values"], **generate_kwargs)

    def postprocess(
        self, outputs, return_findings: bool = False, abstain_below: float | None = None
    ) -> list[dict[str, Any]]:
        rows = decode(self.tokenizer, outputs["sequences"][0], outputs["scores"][0])
        curve = getattr(self.model.config, CALIBRATION, None)
        for row, score in zip(rows, calibrated(curve, [row["score"] for row in rows]), strict=True):
            row["score"] = score
        if return_findings:
            rows = [row | {"findings": sorted(positive_findings(row["impression"], sided=True))} for row in rows]
        if abstain_below is None:
            return rows
        return [_withheld(row) if row["score"] < abstain_below else row | {"abstained": False} for row in rows]


def _withheld(row: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(row) | {"score": row["score"], "abstained": True}


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
