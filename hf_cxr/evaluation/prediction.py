"""What a checkpoint writes for the studies of a split, from all it is given or from one view, and what it encodes.

Every study is served exactly once, shared out over the running processes. Scoring lives in
`hf_cxr.evaluation.evaluate`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from PIL import Image

from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.sections import contexts
from hf_cxr.inference.attention import grid
from hf_cxr.inference.checks import LAYOUT, panel_size_of, panels_of
from hf_cxr.inference.pipeline import ImpressionPipeline, generate
from hf_cxr.inference.remote_code import REMOTE_TASK
from hf_cxr.inference.sections import SECTIONS, Layout, layout_of, prompt_ids, split_sections
from hf_cxr.inference.views import VIEWS, read_radiograph, single_view
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.utils.progress import ProgressBar

THUMBNAIL = 16  # pixels a panel, of the embedding by pixels
Canvas = np.ndarray  # uint8, (panel, 2 × panel); of a checkpoint of one square image one view, of any size


def predict(
    checkpoint: str | os.PathLike | Checkpoint, studies: Any, dtype: str | torch.dtype | None = None, **options: Any
) -> list[Any]:
    """Write impressions, as `transformers.pipeline("cxr-impression", model=checkpoint)(studies, **options)` does.

    Args:
        checkpoint: folder, Hub id, or what `load_checkpoint` gives.
        studies: one study or many, in any form that `ImpressionPipeline` takes.
        dtype: as in `load_checkpoint`; of a checkpoint that is loaded already it is what it was loaded as.
        options: those of `ImpressionPipeline`, `batch_size` and `num_workers`.

    Returns `[{"impression": str, "score": float, …}]` for one study, a list of those for many.

    Raises `FileNotFoundError` where there is no such checkpoint, and `ValueError` for one of another kind or a study
    that cannot be read.
    """
    parts = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint, dtype=dtype)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    return list(pipe(studies, **options))


class SingleViews:
    """What a checkpoint of one square image is given of each study of a split: the frontal view, or the lateral one
    of a study that has no other, grey (height, width) as it is stored; its own image processor does the rest."""

    def __init__(self, split: Dataset, panel_size: int) -> None:
        rows = split.select_columns([*VIEWS])
        for view in VIEWS:
            rows = rows.cast_column(view, datasets.Image(decode=False))
        self.rows, self.panel_size = rows, panel_size

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, index: int) -> tuple[str, bytes]:
        stored = {view: image["bytes"] for view, image in self.rows[index].items() if image and image["bytes"]}
        return (name := single_view(stored)), stored[name]

    def canvas(self, index: int) -> Canvas:
        return np.asarray(read_radiograph(self.view(index)[1]))


Canvases = CanvasDataset | SingleViews


def open_canvases(checkpoint: Checkpoint, split: Dataset, num_proc: int | None = None) -> Canvases:
    """The canvases of a split as this checkpoint sees them, packed by one process of each machine."""
    panel_size = panel_size_of(checkpoint.image_processor)
    if panels_of(checkpoint.image_processor) == 1:
        return SingleViews(split, panel_size)
    with PartialState().local_main_process_first():
        packed = pack_dataset(split, panel_size, num_proc)
    return CanvasDataset(packed, panel_size)


def predict_split(
    checkpoint: Checkpoint, split: Dataset, batch_size: int = 32, num_proc: int | None = None, **generate_kwargs
) -> list[dict[str, Any]]:
    """Generate the text that the checkpoint writes for every study of a split, from its images and its context.

    Returns, in the order of the split and on every process, rows `{"uid", "prediction", "sequence_probability"}` and
    the radiologist's text under the name of its section.
    """
    canvases, writer = open_canvases(checkpoint, split, num_proc), Writer(checkpoint, batch_size, generate_kwargs)
    section, prompts = writer.layout.top, writer.prompts(split)
    written = writer.write(canvases.canvas, range(len(canvases)), prompt=prompts.__getitem__)
    return [
        {"uid": uid, section: truth, "prediction": text.of(section), "sequence_probability": text.probability}
        for uid, truth, text in zip(split["uid"], split[section], written, strict=True)
    ]


class Written(NamedTuple):
    """What a model wrote for a study: section → text, its probability, whether it was cut short, and of minimum risk
    the share of samples that state each finding."""

    texts: dict[str, str]
    probability: float
    truncated: bool
    shares: Sequence[float] = ()

    @property
    def text(self) -> str:
        """The whole."""
        return " ".join(filter(None, self.texts.values()))

    def of(self, section: str) -> str:
        """The text of a section; of "report" the whole."""
        return self.text if section == "report" else self.texts[section]


@dataclass
class Writer:
    """A checkpoint at work. It keeps what it wrote for each canvas and prompt, and of the encoder's states of each
    canvas the mean and the class token: no text is written twice, and memory grows by some kilobytes a canvas."""

    checkpoint: Checkpoint
    batch_size: int = 32
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None  # what a checkpoint of others writes, which does not say
    texts: dict[tuple[bytes, tuple[int, ...]], Written] = field(default_factory=dict)
    pooled: dict[bytes, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.checkpoint.model.eval().to(PartialState().device)
        self.layout = _layout(self.checkpoint, self.target)
        self.panels = panels_of(self.checkpoint.image_processor)
        self.bare = prompt_ids(self.checkpoint.tokenizer, self.layout, {})  # the prompt of a study without context

    def canvases(self, studies: Dataset) -> Canvases:
        """The canvases of studies as the checkpoint sees them."""
        return open_canvases(self.checkpoint, studies)

    def prompts(self, studies: Dataset) -> list[list[int]]:
        """The tokens that stand before the text of each study, made of the context that it has."""
        if not self.layout.context:
            return [self.bare] * len(studies)
        return [prompt_ids(self.checkpoint.tokenizer, self.layout, context) for context in contexts(studies)]

    def write(
        self,
        canvas: Callable[[int], Canvas],
        indices: Sequence[int],
        description: str = "Generating",
        prompt: Callable[[int], Sequence[int]] | None = None,
    ) -> list[Written]:
        """The text of each of `indices`, in their order and on every process.

        Args:
            canvas, prompt: give the canvas and the prompt of an index; without `prompt` no context is given.
        """
        tokenizer = self.checkpoint.tokenizer

        def asked(index: int) -> tuple[int, ...]:
            return tuple(prompt(index) if prompt else self.bare)

        def write(batch: Sequence[int]) -> list[tuple[Written, np.ndarray]]:
            pixels, prompts = self._pixels(map(canvas, batch)), [asked(index) for index in batch]
            output = generate(self.model, pixels, prompts, tokenizer, **self.generate_kwargs)
            texts = [split_sections(tokenizer, self.layout, ids) for ids in output["sequences"][:, 0].tolist()]
            scores, cut = output["scores"][:, 0].tolist(), output["truncated"][:, 0].tolist()
            shares = output["shares"].tolist() if "shares" in output else [()] * len(texts)
            written = map(Written, texts, scores, cut, shares)
            return list(zip(written, pool(output["states"], self.panels), strict=True))

        keys = [(key(canvas(index)), asked(index)) for index in indices]
        new = {key: index for key, index in zip(keys, indices, strict=True) if key not in self.texts}
        done = _shared_out(write, list(new.values()), self.batch_size, description)
        self.texts |= {key: text for key, (text, _) in zip(new, done, strict=True)}
        self.pooled |= {key: pooled for (key, _), (_, pooled) in zip(new, done, strict=True)}
        return [self.texts[key] for key in keys]

    def try_searches(
        self,
        searches: Sequence[Mapping[str, Any]],
        canvases: Canvases,
        prompts: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int]],
    ) -> list[Sequence[str]]:
        """What the model writes by each of `searches`, options of `generate`: of a canvas and a prompt, those at each
        of `places`, the text of the top section. A batch is encoded once."""
        tokenizer, top = self.checkpoint.tokenizer, self.layout.top

        def write(batch: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
            pixels, asked = self._pixels(canvases.canvas(i) for i, _ in batch), [prompts[i] for _, i in batch]
            states, texts = None, []
            for search in searches:
                options = {**self.generate_kwargs, **search, "decode": "search"}
                output = generate(self.model, pixels, asked, tokenizer, states, **options)
                rows, states = output["sequences"][:, 0].tolist(), output["states"]
                texts.append([split_sections(tokenizer, self.layout, ids)[top] for ids in rows])
            return list(zip(*texts, strict=True))

        return list(zip(*_shared_out(write, places, self.batch_size, "Trying searches"), strict=True))

    def embed(self, canvases: Canvases, description: str = "Encoding") -> dict[str, np.ndarray]:
        """Embeddings of every study, float32 (studies, dimensions), on every process.

        `nearest_pixels`: the canvas shrunk to 16 × 32 pixels, a single view to 16 × 16. `nearest_encoder`: the mean of
        the encoder's states. `encoder`: the same and, of an encoder that has one, behind it the state of its class
        token.
        """

        def encode(batch: Sequence[int]) -> list[np.ndarray]:
            with torch.inference_mode():
                pixels = self._pixels(map(canvases.canvas, batch)).to(self.model.device, self.model.dtype)
                return list(pool(self.model.encoder(pixels)[0], self.panels))

        keys = [key(canvases.canvas(index)) for index in range(len(canvases))]
        new = {key: index for index, key in enumerate(keys) if key not in self.pooled}
        done = _shared_out(encode, list(new.values()), self.batch_size, description)
        self.pooled |= dict(zip(new, done, strict=True))
        small = np.concatenate([_shrunk(canvases.canvas(index), self.panels) for index in range(len(canvases))])
        pooled = np.stack([self.pooled[key] for key in keys])
        means = pooled[:, : self.model.encoder.config.hidden_size]
        return {"nearest_pixels": small, "nearest_encoder": means, "encoder": pooled}

    def _pixels(self, canvases: Iterable[Canvas]) -> torch.Tensor:
        processor = self.checkpoint.image_processor
        if self.panels == 1:
            images = [Image.fromarray(canvas).convert("RGB") for canvas in canvases]
            return processor(images, return_tensors="pt")["pixel_values"]
        return CanvasCollator(processor)([{"canvas": canvas} for canvas in canvases])["pixel_values"]


def _layout(checkpoint: Checkpoint, target: str | None) -> Layout:
    """What a checkpoint writes and is given; one of one view that does not say writes what `target` names."""
    layout = layout_of(checkpoint.model.config)
    if target in (None, layout.target):
        return layout
    if target not in SECTIONS:
        raise ValueError(f"target: {' or '.join(SECTIONS)}, not {target!r}")
    config, panels = checkpoint.model.config, panels_of(checkpoint.image_processor)
    if panels > 1 or getattr(config, LAYOUT, None) or REMOTE_TASK in (getattr(config, "custom_pipelines", None) or {}):
        raise ValueError(f"target: {target}, but this checkpoint says that it writes: {layout.target}")
    return Layout((target,))


def pool(states: torch.Tensor, panels: int) -> np.ndarray:
    """The mean of the states (studies, tokens, dimensions) and, where tokens precede the patches, the first."""
    parts = [states.mean(1)]
    with suppress(ValueError):  # no grid of patches
        if grid(states.shape[1], panels)[1]:
            parts.append(states[:, 0])
    return torch.cat(parts, dim=1).float().cpu().numpy()


def pooled_states(checkpoint: Checkpoint, split: Dataset, states: np.ndarray | None) -> dict[bytes, np.ndarray]:
    """What `Writer` keeps of each canvas of a split whose encoder states are at hand."""
    if states is None:
        return {}
    canvases, panels = open_canvases(checkpoint, split), panels_of(checkpoint.image_processor)
    rows = range(len(states))
    return {key(canvases.canvas(row)): pool(torch.tensor(states[row : row + 1]), panels)[0] for row in rows}


def key(canvas: Canvas) -> bytes:
    return hashlib.sha256(repr(canvas.shape).encode() + canvas.tobytes()).digest()


def _shrunk(canvas: Canvas, panels: int) -> np.ndarray:
    """(1, 256 × panels): each panel as 16 × 16 pixels."""
    grey = torch.from_numpy(canvas.astype(np.float32))[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(grey, (THUMBNAIL, panels * THUMBNAIL)).flatten(1).numpy()


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


def views_shown(canvases: Canvases) -> list[str]:
    """`views_of` each canvas; of a single view its name."""
    if isinstance(canvases, SingleViews):
        return [canvases.view(index)[0] for index in range(len(canvases))]
    return [views_of(canvases.canvas(index)) for index in range(len(canvases))]


def mean_canvas(canvases: Canvases) -> Canvas:
    """The mean image of a split, rounded to grey levels; of single views, which differ in size, that of squares."""
    side, single = canvases.panel_size, isinstance(canvases, SingleViews)
    total = np.zeros((side, side if single else 2 * side))
    for index in range(len(canvases)):
        canvas = canvases.canvas(index)
        total += np.asarray(Image.fromarray(canvas).resize((side, side))) if single else canvas
    return (total / len(canvases)).round().astype(np.uint8)


def _shared_out(
    work: Callable[[Sequence[Any]], list], indices: Sequence[Any], batch_size: int, description: str
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
