"""The `cxr-impression` pipeline: two radiographs in, an impression out. Research use only, not for diagnosis.

This file travels with a checkpoint as its remote code, together with `views.py`, `dicom.py`, `plausibility.py`,
`attention.py`, `findings.py` and what that reads (`finding_words.py`, `finding_places.py`). They import nothing else
of the kit. They open no connection but to an address that is given as a view.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from types import GeneratorType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline, VisionEncoderDecoderModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from .attention import VIEWS, cross_attention, overlays
from .findings import positive_findings
from .plausibility import doubts
from .views import UnreadableImage, called, pack_views, read_radiograph

OPTIONS = ("return_findings", "return_attention", "abstain_below", "on_unlikely", "on_unreadable")
GENERATE_OPTIONS = (
    *("max_new_tokens", "num_beams", "num_return_sequences"),
    *("do_sample", "temperature", "top_p", "top_k"),
)
ON_UNLIKELY, ON_UNREADABLE = ("warn", "error", "ignore"), ("error", "skip")
# Of one address: patience with a server that sends nothing, and what is read at most, in time and size.
SECONDS, MAX_SECONDS, MAX_BYTES = 30, 300, 256 << 20
FETCH_ERRORS = {
    "OfflineModeIsEnabled": "the environment asks for offline mode (HF_HUB_OFFLINE)",
    "TimeoutException": f"the server did not answer within {SECONDS} s",
    "ConnectError": "the server cannot be reached",
}
CALIBRATION = "cxr_calibration"  # where a checkpoint's config carries what a score is worth


def generate(model, pixel_values: torch.Tensor, **generate_kwargs) -> dict[str, torch.Tensor]:
    """Generate token sequences for a batch of canvases.

    Args:
        pixel_values: (batch, channels, height, width), normalised by the checkpoint's image processor.
        generate_kwargs: passed on to `model.generate`; its `generation_config` gives the defaults.

    Returns `sequences` (batch, texts, length), `scores` and `truncated` (batch, texts). A score is the probability
    that the model gives to the whole text, however it was searched or sampled: the product of its tokens'
    probabilities, its end among them. A text that was cut short has no end; its score is 0.
    """
    with torch.inference_mode():
        output = model.generate(
            pixel_values.to(model.device, model.dtype),
            return_dict_in_generate=True,
            output_logits=True,  # `output_scores` are those after temperature, top_k and top_p
            **generate_kwargs,
        )
        log_probabilities = model.compute_transition_scores(
            output.sequences, output.logits, getattr(output, "beam_indices", None), normalize_logits=True
        )
    tokens = output.sequences[:, -log_probabilities.shape[1] :]
    written = (tokens != model.generation_config.pad_token_id) & torch.isfinite(log_probabilities)
    truncated = ~torch.isin(tokens, torch.as_tensor(model.generation_config.eos_token_id).to(tokens.device)).any(1)
    scores = log_probabilities.float().masked_fill(~written, 0.0).sum(1).exp().masked_fill(truncated, 0.0)
    batch = len(pixel_values)
    return {
        "sequences": output.sequences.reshape(batch, -1, output.sequences.shape[1]).cpu(),
        "scores": scores.reshape(batch, -1).cpu(),
        "truncated": truncated.reshape(batch, -1).cpu(),
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

    A study is a dict with `frontal` and `lateral` (either may be missing or None; of a row that has both, further
    columns are ignored) or a (frontal, lateral) tuple. Many studies are a list, a generator, a `KeyDataset` over a
    column that holds studies or is named after a view, or a `datasets.Dataset` with a column `frontal`, `lateral` or
    both. A view is a path, an http(s) address, bytes, a PIL image, a numpy array, a DICOM file, or a picture of
    `datasets` that is not decoded.

    Returns `[{"impression": str, "score": float}]` for a study: `num_return_sequences` of them. A `score` is the
    chance that the text states exactly the findings that a radiologist would, as seen on the validation split, or,
    where the checkpoint carries no such calibration, the text's probability under the model. A text that
    `max_new_tokens` cut short is marked `"truncated": True`.

    Options:
        max_new_tokens, num_beams, num_return_sequences, do_sample, temperature, top_p, top_k: those of `generate`.
        return_findings: add `findings`, the labels read from the text.
        return_attention: add `attention`, `{"frontal": …, "lateral": …}`: the decoder's cross-attention over the
            whole text, laid on each view as a PIL image; "words" adds `attention_words`, `[(word, {…}), …]`.
        abstain_below: withhold a text of a lower score: `{"impression": None, "score": …, "abstained": True}`.
        on_unlikely: a picture that cannot be a chest radiograph (tiny, a strip, all one value, colour) adds its
            `warnings` to the answer ("warn", the default), raises `UnreadableImage` ("error"), or passes ("ignore").
        on_unreadable: a study that cannot be read raises a `ValueError` or `TypeError` that says which of many it is,
            counted from 0 ("error", the default), or the others go on, and its answer is `{"impression": None,
            "score": None, "error": str}` ("skip").
    """

    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = True
    _load_tokenizer = True
    _pipeline_calls_generate = False  # options go straight to `generate`

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, KeyDataset) and inputs.key in VIEWS:
            inputs = _Rows(_undecoded(inputs.dataset, [inputs.key]), [inputs.key])
        elif hasattr(inputs, "column_names") and hasattr(inputs, "select_columns"):  # a `datasets.Dataset`
            if inputs.column_names is None:  # a stream whose columns show only in its rows
                inputs = _stream(inputs)
            else:
                views = _views_among(inputs.column_names)
                rows = inputs.select_columns(views)
                inputs = _Rows(_undecoded(rows, views), views) if isinstance(inputs, Sized) else _stream(rows)
        elif isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(_numbered(inputs), *args, **kwargs)

    def _sanitize_parameters(
        self,
        return_findings: bool | None = None,
        return_attention: bool | str | None = None,
        abstain_below: float | None = None,
        on_unlikely: str | None = None,
        on_unreadable: str | None = None,
        **generate_kwargs,
    ):
        generate_kwargs |= generate_kwargs.pop("generate_kwargs", {})
        unknown = sorted(set(generate_kwargs) - set(GENERATE_OPTIONS))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join((*OPTIONS, *GENERATE_OPTIONS))}")
        if abstain_below is not None and not 0 <= abstain_below <= 1:
            raise ValueError(f"abstain_below is between 0 and 1, not {abstain_below}")
        if on_unlikely not in (None, *ON_UNLIKELY):
            raise ValueError(f"on_unlikely is one of {', '.join(ON_UNLIKELY)}, not {on_unlikely!r}")
        if on_unreadable not in (None, *ON_UNREADABLE):
            raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, not {on_unreadable!r}")
        if return_attention not in (None, False, True, "words"):
            raise ValueError(f"return_attention is True, False or 'words', not {return_attention!r}")
        for name in ("num_beams", "num_return_sequences"):
            if (number := generate_kwargs.get(name)) is not None and number < 1:
                raise ValueError(f"{name} is at least 1, not {number}")
        tokens = generate_kwargs.get("max_new_tokens")
        longest = self.model.config.decoder.max_position_embeddings - 1
        if tokens is not None and not 0 < tokens <= longest:
            raise ValueError(f"max_new_tokens {tokens}: this decoder writes 1 to {longest}")
        before = {
            "on_unlikely": on_unlikely,
            "on_unreadable": on_unreadable,
            "keep_views": return_attention and True,
        }
        after = {
            "return_findings": return_findings,
            "return_attention": return_attention,
            "abstain_below": abstain_below,
        }
        forward = generate_kwargs | _given({"return_attention": return_attention and True})
        return _given(before), forward, _given(after)

    def preprocess(
        self, study, on_unlikely: str = "warn", on_unreadable: str = "error", keep_views: bool = False
    ) -> dict[str, Any]:
        size = self.image_processor.size["height"]
        which, study = (f"study {study.place}: ", study.study) if isinstance(study, _Numbered) else ("", study)
        views: dict[str, Image.Image] = {}
        warnings, errors = list[str](), list[str]()
        try:
            views, warnings = _read(study, size, on_unlikely)
            canvas = pack_views(views.get("frontal"), views.get("lateral"), size=size)
        except (ValueError, TypeError) as error:
            if on_unreadable == "error":
                raise _kind(error)(f"{which}{error}") from error
            errors = [str(error)]
            canvas = Image.new("RGB", (2 * size, size))  # holds its place in the batch
        inputs = {"pixel_values": self.image_processor(canvas, return_tensors="pt")["pixel_values"]}
        return inputs | {"warnings": warnings, "errors": errors, "views": views if keep_views else {}}

    def _forward(self, inputs, return_attention: bool = False, **generate_kwargs):
        pixel_values = inputs["pixel_values"]
        outputs: dict[str, Any] = generate(self.model, pixel_values, **generate_kwargs)
        if return_attention:
            outputs["maps"] = torch.stack(
                [
                    torch.stack([cross_attention(self.model, pixels[None], text) for text in texts])
                    for pixels, texts in zip(pixel_values, outputs["sequences"], strict=True)
                ]
            )
        return outputs | {name: inputs[name] for name in ("warnings", "errors", "views")}

    def postprocess(
        self,
        outputs,
        return_findings: bool = False,
        return_attention: bool | str = False,
        abstain_below: float | None = None,
    ) -> list[dict[str, Any]]:
        if outputs["errors"]:
            return [{"impression": None, "score": None, "error": outputs["errors"][0]}]
        rows = decode(self.tokenizer, outputs["sequences"][0], outputs["scores"][0])
        curve = getattr(self.model.config, CALIBRATION, None)
        for row, score in zip(rows, calibrated(curve, [row["score"] for row in rows]), strict=True):
            row["score"] = score
        rows = [
            row | {"truncated": True} if cut else row
            for row, cut in zip(rows, outputs["truncated"][0].tolist(), strict=True)
        ]
        if return_findings:
            rows = [row | {"findings": sorted(positive_findings(row["impression"], sided=True))} for row in rows]
        if return_attention:
            for row, sequence, maps in zip(rows, outputs["sequences"][0], outputs["maps"][0], strict=True):
                row |= overlays(self.tokenizer, sequence, maps, outputs["views"], words=return_attention == "words")
        if abstain_below is not None:
            rows = [_withheld(row) if row["score"] < abstain_below else row | {"abstained": False} for row in rows]
        if outputs["warnings"]:
            rows = [row | {"warnings": list(outputs["warnings"])} for row in rows]
        return rows


@dataclass(frozen=True)
class _Numbered:
    """A study among many, and its place there, so that an error can tell which it is."""

    place: int
    study: Any


class _Rows(Dataset):
    """Many studies that can be picked: the rows of `studies`, or of each row the columns `views`."""

    def __init__(self, studies, views: Sequence[str] = ()) -> None:
        self.studies, self.views = studies, views

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> _Numbered:
        study = self.studies[index]
        return _Numbered(index, {view: study[view] for view in self.views} if self.views else study)


def _numbered(inputs):
    """Many studies, in whatever form the base class takes, each with its place; a single one as it is."""
    if isinstance(inputs, list):
        return [_Numbered(place, study) for place, study in enumerate(inputs)]
    if isinstance(inputs, Dataset) and isinstance(inputs, Sized):
        return inputs if isinstance(inputs, _Rows) else _Rows(inputs)
    if isinstance(inputs, (IterableDataset, GeneratorType)):
        return (_Numbered(place, study) for place, study in enumerate(inputs))
    return inputs


def _undecoded(rows, views: Sequence[str]):
    """The rows of a `datasets.Dataset` with their pictures as they are stored, so that a damaged one is an error of
    its study alone. Rows of another kind, or with a format of the user's, as they are."""
    if getattr(rows, "format", {"type": "none"})["type"] is None:
        for view in views:
            if getattr(rows.features[view], "decode", False):
                rows = rows.cast_column(view, replace(rows.features[view], decode=False))
    return rows


def _stream(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {view: row[view] for view in _views_among(row)}


def _views_among(columns: Collection[str]) -> list[str]:
    views = [view for view in VIEWS if view in columns]
    if not views:
        raise ValueError(f"the dataset has neither a column 'frontal' nor 'lateral': {list(columns)}")
    return views


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _withheld(row: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(row) | {"score": row["score"], "abstained": True}


def _views_of(study) -> tuple[Any, Any]:
    if isinstance(study, Mapping):
        unknown = sorted(set(study) - set(VIEWS))
        if len(study) - len(unknown) < len(VIEWS) and (unknown or not study):  # perhaps a view, misspelt
            raise ValueError(f"a study has the keys 'frontal' and 'lateral', not {unknown or 'none at all'}")
        return study.get("frontal"), study.get("lateral")
    if isinstance(study, (tuple, list)) and len(study) == len(VIEWS):
        return study[0], study[1]
    raise ValueError("a study is a dict with 'frontal' and 'lateral' or a (frontal, lateral) pair, not a single image")


def _read(study, size: int, on_unlikely: str) -> tuple[dict[str, Image.Image], list[str]]:
    """The views that a study has, by name, and what speaks against their being radiographs."""
    views: dict[str, Image.Image] = {}
    warnings: list[str] = []
    for name, source in zip(VIEWS, _views_of(study), strict=True):
        if source is None:
            continue
        if isinstance(source, Mapping):  # a picture of `datasets` that is not decoded
            source = source.get("bytes") or source.get("path")
        where = f"{name}: {_public(source)}" if _is_address(source) else name
        try:
            if _is_address(source):
                source = _fetched(source)
            elif callable(source):
                source = called(source)
            views[name] = read_radiograph(source, at_least=2 * size)
        except (UnreadableImage, TypeError) as error:
            raise _kind(error)(f"{where}: {error}") from error
        if on_unlikely != "ignore":
            warnings += [f"{name}: {doubt}" for doubt in doubts(source, views[name])]
    if warnings and on_unlikely == "error":
        raise UnreadableImage("; ".join(warnings))
    return views, warnings


def _kind(error: Exception) -> type[Exception]:
    return next(kind for kind in (UnreadableImage, ValueError, TypeError) if isinstance(error, kind))


def _is_address(source) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _public(address: str) -> str:
    """An address without what may be secret in it: user, password, and the query that signs a link."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _fetched(address: str) -> bytes:
    content, deadline = bytearray(), time.monotonic() + MAX_SECONDS
    try:
        with get_session().stream("GET", address, follow_redirects=True, timeout=SECONDS) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise UnreadableImage(f"more than {MAX_BYTES >> 20} MB")
                if time.monotonic() > deadline:
                    raise UnreadableImage(f"not whole after {MAX_SECONDS} s")
    except UnreadableImage as error:
        raise UnreadableImage(f"could not be fetched: {error}") from None
    except Exception as error:
        raise UnreadableImage(f"could not be fetched: {_why(error)}") from None
    return bytes(content)


def _why(error: Exception) -> str:
    """An error of the client in our own words: its own may hold the whole address."""
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return f"status {status}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return next((told for kind, told in FETCH_ERRORS.items() if kind in kinds), type(error).__name__)


if __package__ == "hf_cxr":  # not when this file came with a checkpoint
    PIPELINE_REGISTRY.register_pipeline(
        "cxr-impression", pipeline_class=ImpressionPipeline, pt_model=VisionEncoderDecoderModel, type="multimodal"
    )
