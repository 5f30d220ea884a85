"""What a checkpoint writes for the studies of a split, from all it is given or from one view, and what it encodes.

Every study is served exactly once, shared out over the running processes. Scoring lives in
`hf_cxr.evaluation.evaluate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset

from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.inference.checks import panel_size_of
from hf_cxr.inference.pipeline import ImpressionPipeline, decode, generate
from hf_cxr.inference.views import VIEWS
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.utils.progress import ProgressBar

THUMBNAIL = 16  # pixels a panel, of the embedding by pixels
Canvas = np.ndarray  # uint8, (panel, 2 × panel)


def predict(checkpoint: str | os.PathLike | Checkpoint, studies: Any, **options: Any) -> list[Any]:
    """Write impressions, as `transformers.pipeline("cxr-impression", model=checkpoint)(studies, **options)` does.

    Args:
        checkpoint: folder, Hub id, or what `load_checkpoint` gives.
        studies: one study or many, in any form that `ImpressionPipeline` takes.
        options: those of `ImpressionPipeline`, `batch_size` and `num_workers`.

    Returns `[{"impression": str, "score": float, …}]` for one study, a list of those for many.

    Raises `FileNotFoundError` where there is no such checkpoint, and `ValueError` for one of another kind or a study
    that cannot be read.
    """
    parts = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    return list(pipe(studies, **options))


def open_canvases(checkpoint: Checkpoint, split: Dataset, num_proc: int | None = None) -> CanvasDataset:
    """The canvases of a split as this checkpoint sees them, packed by one process of each machine."""
    panel_size = panel_size_of(checkpoint.image_processor)
    with PartialState().local_main_process_first():
        packed = pack_dataset(split, panel_size, num_proc)
    return CanvasDataset(packed, panel_size)


def predict_split(
    checkpoint: Checkpoint, split: Dataset, batch_size: int = 32, num_proc: int | None = None, **generate_kwargs
) -> list[dict[str, Any]]:
    """Generate an impression for every study of a split.

    Returns, in the order of the split and on every process, rows `{"uid", "impression", "prediction",
    "sequence_probability"}`.
    """
    canvases = open_canvases(checkpoint, split, num_proc)
    written = write_texts(checkpoint, canvases.canvas, range(len(canvases)), batch_size, **generate_kwargs)
    return [
        {"uid": uid, "impression": truth, "prediction": text, "sequence_probability": probability}
        for uid, truth, (text, probability) in zip(split["uid"], split["impression"], written, strict=True)
    ]


def write_texts(
    checkpoint: Checkpoint,
    canvas: Callable[[int], Canvas],
    indices: Sequence[int],
    batch_size: int,
    description: str = "Generating",
    **generate_kwargs,
) -> list[tuple[str, float]]:
    """The text of each of `indices` and its probability under the model, in their order and on every process."""
    collate = CanvasCollator(checkpoint.image_processor)
    model = _at_work(checkpoint)

    def write(batch: Sequence[int]) -> list[tuple[str, float]]:
        pixels = collate([{"canvas": canvas(index)} for index in batch])["pixel_values"]
        output = generate(model, pixels, **generate_kwargs)
        best = [
            decode(checkpoint.tokenizer, sequences, scores)[0]
            for sequences, scores in zip(output["sequences"], output["scores"], strict=True)
        ]
        return [(row["impression"], row["score"]) for row in best]

    return _shared_out(write, indices, batch_size, description)


def embed(
    checkpoint: Checkpoint, canvases: CanvasDataset, batch_size: int, description: str = "Encoding"
) -> dict[str, np.ndarray]:
    """Two embeddings of every study, float32 (studies, dimensions), on every process.

    `nearest_pixels`: the canvas shrunk to 16 × 32 pixels. `nearest_encoder`: the mean of the encoder's states.
    """
    collate = CanvasCollator(checkpoint.image_processor)
    model = _at_work(checkpoint)

    def encode(batch: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        grey = torch.from_numpy(np.stack([canvases.canvas(index) for index in batch]))[:, None].float()
        small = torch.nn.functional.adaptive_avg_pool2d(grey, (THUMBNAIL, 2 * THUMBNAIL)).flatten(1).numpy()
        pixels = collate([{"canvas": canvases.canvas(index)} for index in batch])["pixel_values"]
        with torch.inference_mode():
            states = model.encoder(pixels.to(model.device, model.dtype)).last_hidden_state.mean(1)
        return list(zip(small, states.float().cpu().numpy(), strict=True))

    pairs = _shared_out(encode, range(len(canvases)), batch_size, description)
    small, states = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return {"nearest_pixels": small, "nearest_encoder": states}


def without(canvas: Canvas, view: str) -> Canvas:
    """The canvas with one panel emptied, as if the study did not have that view."""
    panel = canvas.shape[1] // 2
    left = panel * VIEWS.index(view)
    canvas = canvas.copy()
    canvas[:, left : left + panel] = 0
    return canvas


def views_of(canvas: Canvas) -> str:
    """Which views a canvas shows: "both", "frontal", "lateral" or "none"."""
    shown = [view for view, panel in zip(VIEWS, np.hsplit(canvas, 2), strict=True) if panel.any()]
    return "both" if len(shown) == len(VIEWS) else shown[0] if shown else "none"


def mean_canvas(canvases: CanvasDataset) -> Canvas:
    """The mean image of a split, rounded to grey levels."""
    total = np.zeros(canvases.canvas(0).shape)
    for index in range(len(canvases)):
        total += canvases.canvas(index)
    return (total / len(canvases)).round().astype(np.uint8)


def _at_work(checkpoint: Checkpoint):
    return checkpoint.model.eval().to(PartialState().device)


def _shared_out(
    work: Callable[[Sequence[int]], list], indices: Sequence[int], batch_size: int, description: str
) -> list:
    """`work` on every index exactly once, by all processes together; the results in the order of `indices`."""
    state = PartialState()
    mine = range(state.process_index, len(indices), state.num_processes)
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    done: list[tuple[int, Any]] = []
    for places in ProgressBar(batches, desc=description, disable=not state.is_main_process):
        done += zip(places, work([indices[place] for place in places]), strict=True)
    if state.num_processes > 1:
        done = gather_object(done)
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]
