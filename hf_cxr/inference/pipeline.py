"""The `cxr-impression` pipeline: two radiographs in, an impression out. Research use only, not for diagnosis.

A checkpoint brings this file as remote code; `remote_code.py` names the others that do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, VisionEncoderDecoderModel
from transformers.pipelines import PIPELINE_REGISTRY

from .answers import check_answer_options, finished, not_read, read_study, scored
from .attention import cross_attention, overlays
from .checks import (
    GENERATE_OPTIONS,
    UnusableCheckpoint,
    check_options,
    check_parts,
    curve_of,
    panel_size_of,
    panels_of,
)
from .generation import decode, generate
from .inputs import numbered
from .processor import ImpressionProcessor
from .remote_code import add_pipeline_code, share_weights
from .sections import checked_layout, prompt_ids, token_of

OPTIONS = ("return_findings", "return_attention", "abstain_below", "on_unlikely", "on_unreadable")
MOST_WORKERS = 256  # processes that read images


class ImpressionPipeline(Pipeline):
    """Write the impression of a study, or the sections that the checkpoint learned, from its frontal and lateral view.

    `pipe(frontal=…, lateral=…)` answers for one study, and so does `pipe(study)`: a dict with `frontal` and `lateral`
    (either may be missing or None; of a row that has both, further columns are ignored), a (frontal, lateral) tuple,
    or a frontal view alone. A dict may also hold the context that the checkpoint takes: `indication`, `comparison`,
    `age_sex` or `age` and `sex`; what is missing is left out, and what the checkpoint does not take is ignored. Many
    studies are a list, a generator, a `KeyDataset` over a column that holds studies or is named after a view, or a
    `datasets.Dataset` with a column `frontal`, `lateral` or both. A view is a path, an http(s) address, bytes, an open
    file, a PIL image, a numpy array, a DICOM file, or in a dict an image of `datasets` that is not decoded. Grey
    levels of 8-bit images, and of arrays of integers from 0 to 255 or floats from 0 to 1, are kept; those of deeper
    ones and of DICOM are stretched, which can change what is written: give an image as the training data were.

    Returns `[{"impression": str, "score": float}]` for a study (a model of findings has `findings` instead, one of
    reports both): `num_return_sequences` of them, in the order of the search. A `score` is the chance that the
    impression (of a model of findings its text) states exactly the findings that a radiologist's does, as seen on the
    validation split for the text that is written by default (for other and for second texts it is an order, no
    chance); or, where the checkpoint carries no such calibration, the probability of the whole text under the model.
    A text that `max_new_tokens` cut short is marked `"truncated": True`, and its score is 0.

    Options:
        max_new_tokens, num_beams, num_return_sequences, do_sample, temperature, top_p, top_k: those of `generate`.
        decode: "mbr" or "search", where the checkpoint chooses among samples by minimum risk and where it does not;
            default: as the checkpoint says, unless another search is named.
        return_findings: add `finding_labels`, read from the whole text, and `possible_finding_labels`, those that it
            is unsure of.
        return_attention: add `attention`, `{"frontal": …, "lateral": …}`: the decoder's cross-attention over the
            whole text, laid on each view as a PIL image; "words" adds `attention_words`, `[(word, {…}), …]`.
        abstain_below: withhold a text of a lower score: `{"impression": None, "score": …, "abstained": True}`.
        on_unlikely: an image that cannot be a chest radiograph (tiny, a strip, all one value, colour), or by its
            pixels is surely no upright one or the other view, adds its `warnings` to the answer ("warn", the
            default), raises `UnreadableImage` ("error"), or passes ("ignore").
        on_unreadable: a study that cannot be read raises `UnreadableImage`, a `ValueError` that says which of many it
            is, counted from 0 ("error", the default), or the others go on, and its answer is `{"impression": None,
            "score": None, "error": str}` ("skip").
    """

    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = True
    _load_tokenizer = True
    _pipeline_calls_generate = False  # options go straight to `generate`

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        try:
            check_parts(self.model, self.tokenizer, self.image_processor)
            self.layout = checked_layout(self.model.config, self.tokenizer)
        except UnusableCheckpoint as error:
            raise UnusableCheckpoint(f"{self.model.name_or_path or 'this model'}: {error}") from error

    def __call__(self, inputs=None, *args, frontal=None, lateral=None, **kwargs):
        if args:
            raise TypeError("give one study, or a list: both views of one as frontal=… and lateral=…, or as a pair")
        if inputs is None:
            inputs = {"frontal": frontal, "lateral": lateral}
        elif frontal is not None or lateral is not None:
            raise ValueError("give a study, or its views as frontal=… and lateral=…: not both")
        for name, least, most in (("batch_size", 1, math.inf), ("num_workers", 0, MOST_WORKERS)):
            number = kwargs.get(name)
            if number is not None and not (type(number) is int and least <= number <= most):
                bounds = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
                raise ValueError(f"{name} is a whole number {bounds}, not {number!r}")
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(numbered(inputs, self.layout.context), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save a checkpoint that brings this code, so that it loads without the kit too; `kwargs` are those of the
        model's own `save_pretrained`."""
        if kwargs.get("push_to_hub"):  # it would upload each part in a commit of its own, and no code
            raise ValueError("save_pretrained does not push: use hf-cxr push, or push_to_hub of the pipeline")
        add_pipeline_code(self.model, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        ImpressionProcessor(self.image_processor, self.tokenizer, self.layout.saved()).save_pretrained(save_directory)
        share_weights(save_directory)

    def _sanitize_parameters(
        self,
        return_findings: bool | None = None,
        return_attention: bool | str | None = None,
        abstain_below: float | None = None,
        on_unlikely: str | None = None,
        on_unreadable: str | None = None,
        **generate_kwargs,
    ):
        nested = generate_kwargs.pop("generate_kwargs", {})
        if not isinstance(nested, Mapping):
            raise ValueError(f"generate_kwargs is a dict of options of generate, not {nested!r}")
        generate_kwargs |= nested
        unknown = sorted(map(str, set(generate_kwargs) - set(GENERATE_OPTIONS)))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join((*OPTIONS, *GENERATE_OPTIONS))}")
        check_answer_options(abstain_below, on_unlikely, on_unreadable, return_attention)
        check_options(self.model, generate_kwargs)
        before = {"on_unlikely": on_unlikely, "keep_views": return_attention and True}
        after = {
            "on_unreadable": on_unreadable,
            "return_findings": return_findings,
            "return_attention": return_attention,
            "abstain_below": abstain_below,
        }
        forward = generate_kwargs | _given({"return_attention": return_attention and True})
        return _given(before), forward, _given(after)

    def preprocess(self, study, on_unlikely: str = "warn", keep_views: bool = False) -> dict[str, Any]:
        size, panels = panel_size_of(self.image_processor), panels_of(self.image_processor)
        read = read_study(study, size, panels, self.layout, on_unlikely)
        inputs = {"pixel_values": self.image_processor(read.canvas, return_tensors="pt")["pixel_values"]}
        views = read.views if keep_views else {}
        if keep_views and panels == 1:  # the view as this checkpoint sees it: stretched, or cropped
            plain = self.image_processor(read.canvas, do_rescale=False, do_normalize=False, return_tensors="np")
            views = dict.fromkeys(
                read.shown, Image.fromarray(plain["pixel_values"][0][0].clip(0, 255).astype(np.uint8))
            )
        inputs["prompt"] = tuple(prompt_ids(self.tokenizer, self.layout, read.context))
        return inputs | {"warnings": read.warnings, "errors": read.errors, "views": views}

    def _forward(self, inputs, return_attention: bool = False, **generate_kwargs):
        pixel_values, prompts = inputs["pixel_values"], inputs["prompt"]
        prompts = [prompts] if isinstance(prompts, tuple) else prompts  # a batch lists them
        outputs: dict[str, Any] = generate(self.model, pixel_values, prompts, self.tokenizer, **generate_kwargs)
        states, prompts = outputs.pop("states"), outputs.pop("prompts")
        if return_attention:
            studies = zip(pixel_values, outputs["sequences"], states, prompts, strict=True)
            outputs["maps"] = torch.stack(
                [
                    torch.stack([cross_attention(self.model, pixels[None], text, seen[None], ids) for text in texts])
                    for pixels, texts, seen, ids in studies
                ]
            )
        return outputs | {name: inputs[name] for name in ("warnings", "errors", "views")}

    def postprocess(
        self,
        outputs,
        on_unreadable: str = "error",
        return_findings: bool = False,
        return_attention: bool | str = False,
        abstain_below: float | None = None,
    ) -> list[dict[str, Any]]:
        if (unread := not_read(outputs["errors"], self.layout, on_unreadable)) is not None:
            return unread
        rows = decode(self.tokenizer, outputs["sequences"][0], outputs["scores"][0], self.layout)
        cut = outputs["truncated"][0].tolist()
        rows = scored(rows, self.layout, curve_of(self.model.config), cut, return_findings)
        if return_attention:
            markers = self.tokenizer.convert_tokens_to_ids([token_of(name) for name in self.layout.sections[1:]])
            for row, sequence, maps in zip(rows, outputs["sequences"][0], outputs["maps"][0], strict=True):
                words = return_attention == "words"
                row |= overlays(self.tokenizer, sequence, maps, outputs["views"], words, markers)
        return finished(rows, abstain_below, outputs["warnings"])


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


if __package__ == "hf_cxr.inference":  # not when this file came with a checkpoint
    PIPELINE_REGISTRY.register_pipeline(
        "cxr-impression", pipeline_class=ImpressionPipeline, pt_model=VisionEncoderDecoderModel, type="multimodal"
    )
