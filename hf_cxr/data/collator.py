"""From a prepared dataset to batches: both views packed once into canvases, then served from a memory map.

Packing (decode, fit, place) happens once per dataset and panel size; what an epoch pays for is a copy and a
normalisation. Training, evaluation and findings pretraining all read images through this module.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from hf_cxr.data.augmentation import augment_panel
from hf_cxr.data.sections import contexts, section_texts
from hf_cxr.inference import decoding, levels, views
from hf_cxr.inference.sections import PLAIN, Layout, prompt_ids, report_ids
from hf_cxr.inference.targets import IGNORED

UNCUT = 1 << 30
CONTEXT_DRAWS, PATCH_DRAWS = 1, 2  # set random streams apart from that of view dropout and augmentation


def pack_dataset(dataset: Dataset, panel_size: int, num_proc: int | None = None, panels: int = 2) -> Dataset:
    """Replace `frontal` and `lateral` by `canvas`: `panel_size * panels * panel_size` grey bytes, row by row.

    The result is cached by `datasets` beside the source, keyed by its content and the panel size.
    """
    raw = dataset.cast_column("frontal", Image(decode=False)).cast_column("lateral", Image(decode=False))
    return raw.map(
        _pack_row,
        fn_kwargs={"panel_size": panel_size, "code": _packing_code(), "panels": panels},
        remove_columns=["frontal", "lateral"],
        num_proc=num_proc if num_proc and num_proc > 1 and len(dataset) > 64 * num_proc else None,
        desc="Packing canvases",
    )


@cache
def _packing_code() -> str:
    """A digest of `views.py` and what it imports: canvases packed by other code are not taken from the cache (they
    hold no DICOM)."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (views, decoding, levels))
    return hashlib.sha256(code).hexdigest()[:16]


def _pack_row(row: dict[str, Any], panel_size: int, code: str, panels: int) -> dict[str, bytes]:
    frontal, lateral = ((row[view] or {}).get("bytes") for view in ("frontal", "lateral"))
    pack = views.pack_array if panels > 1 else views.single_array
    return {"canvas": pack(frontal, lateral, panel_size).tobytes()}


def note_on_long_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[str]], max_length: int, layout: Layout = PLAIN
) -> str | None:
    """One line on the texts (section → those of each study) that `report_ids` cuts; `None` where it cuts none."""
    whole = report_ids(tokenizer, layout, texts, UNCUT)
    cut = sum(map(operator.ne, whole, report_ids(tokenizer, layout, texts, max_length)))
    if not cut:
        return None
    longest = max(map(len, whole))
    why = "are longer than max_target_length" if len(layout.sections) == 1 else "do not fit max_target_length"
    return (
        f"{cut:,} of {len(whole):,} training texts {why} (longest: {longest} tokens): they are cut at the end of a "
        "sentence, or taught without an end"
    )


def note_on_small_images(dataset: Dataset, panel_size: int) -> str | None:
    """One line where the images of most studies are smaller than the panel, by the first 16; else `None`."""
    some = dataset.select(range(min(16, len(dataset)))).select_columns(["frontal", "lateral"])
    sides = [max(image.size) for row in some for image in row.values() if image]
    if not sides or (side := sorted(sides)[len(sides) // 2]) >= panel_size:
        return None
    return (
        f"images are stored with {side} pixels and enlarged to panels of {panel_size}, which adds no detail: prepare "
        f"with --size {panel_size} or more, or set a smaller panel_size"
    )


class CanvasDataset(torch.utils.data.Dataset):
    """Rows of a packed dataset as `{"canvas": uint8 (panel_size, panels * panel_size), "labels": token ids}`.

    `view_dropout` empties one panel of a two-view study with that probability, so that single-view studies are in
    distribution; `augmentation` is the strength given to `augment_panel`. The draws depend only on (seed, epoch, row):
    not on the number of processes, workers or resumes.

    With `states`, an array of encoder states (studies, tokens, hidden), those are served in place of the canvas, but
    for a share of `patch_dropout` that is drawn anew in each epoch.

    Where `layout` takes context, `prompt` is the tokens that stand before the labels. `context_dropout` leaves out
    each context with that probability, by draws of its own.

    With `others`, the place of another study for each, `other_canvas` is that study's canvas.
    """

    def __init__(
        self,
        packed: Dataset,
        panel_size: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        targets: Any = None,
        max_length: int = 128,
        view_dropout: float = 0.0,
        augmentation: float = 0.0,
        seed: int = 0,
        layout: Layout = PLAIN,
        context_dropout: float = 0.0,
    ) -> None:
        self.rows = packed.select_columns(["canvas"]).with_format("arrow")
        self.panel_size = panel_size
        self.view_dropout, self.augmentation, self.seed = view_dropout, augmentation, seed
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # data loader workers see it change
        self.states: np.ndarray | None = None
        self.patch_dropout = 0.0
        self.others: Sequence[int] | None = None
        self.labels = targets
        self.context_dropout = context_dropout
        self.first: list[int] = []  # the token of the first section, where the layout takes context
        self.contexts: list[list[list[int]]] | None = None  # of each study the tokens of each context that it has
        if tokenizer is not None:
            self.labels = report_ids(tokenizer, layout, section_texts(packed, layout), max_length)
        if tokenizer is not None and layout.context:
            self.first = prompt_ids(tokenizer, layout, {})
            self.contexts = [
                [
                    prompt_ids(tokenizer, layout, {name: given[name]})[: -len(self.first)]
                    for name in layout.context
                    if name in given
                ]
                for given in contexts(packed)
            ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"canvas": self.canvas(index)} if self.states is None else {"states": self.kept(index)}
        if self.labels is not None:
            item["labels"] = self.labels[index]
        if self.contexts is not None:
            item["prompt"] = self.prompt(self.contexts[index], index)
        if self.others is not None:
            item["other_canvas"] = self.canvas(int(self.others[index]))
        return item

    def prompt(self, given: list[list[int]], index: int) -> list[int]:
        """The tokens before the text of one row, from the contexts that it has, as this epoch shows them."""
        if self.context_dropout:
            rng = np.random.default_rng((self.seed, int(self.epoch), index, CONTEXT_DRAWS))
            given = [part for part in given if rng.random() >= self.context_dropout]
        return [*chain.from_iterable(given), *self.first]

    def kept(self, index: int) -> np.ndarray:
        """The encoder states of one row that this epoch shows, in their order: (tokens, hidden)."""
        assert self.states is not None
        states = self.states[index]
        if not self.patch_dropout:
            return states
        rng = np.random.default_rng((self.seed, int(self.epoch), index, PATCH_DRAWS))
        number = max(1, round((1 - self.patch_dropout) * len(states)))
        return states[np.sort(rng.choice(len(states), number, replace=False))]

    def canvas(self, index: int) -> np.ndarray:
        """The canvas of one row as this epoch shows it: `uint8`, (panel_size, panels * panel_size)."""
        data = self.rows[index]["canvas"][0].as_buffer()
        canvas = np.frombuffer(data, np.uint8).reshape(self.panel_size, -1)
        if not self.view_dropout and not self.augmentation:
            return canvas
        panels = np.hsplit(canvas, canvas.shape[1] // self.panel_size)
        rng = np.random.default_rng((self.seed, int(self.epoch), index))
        if self.view_dropout and rng.random() < self.view_dropout and all(panel.any() for panel in panels):
            which = rng.integers(2)
            panels[which] = np.zeros_like(panels[which])
        if self.augmentation:
            panels = [augment_panel(panel, self.augmentation, rng) if panel.any() else panel for panel in panels]
        return np.concatenate(panels, axis=1)


class CanvasCollator:
    """Batch rows into `pixel_values` (batch, 3, height, width), normalised exactly as the checkpoint's image processor
    would, and text labels padded to the longest with the decoder's shifted input beside them, a prompt before the text
    being input without a label; class targets, which have no decoder, are stacked as floats. Rows of encoder states
    become `encoder_outputs` in place of the pixels; another study's canvas becomes `other_pixel_values`."""

    def __init__(
        self, image_processor: BaseImageProcessor, pad_token_id: int | None = None, start_token_id: int | None = None
    ) -> None:
        mean = torch.tensor(image_processor.image_mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = torch.tensor(image_processor.image_std, dtype=torch.float32).view(1, -1, 1, 1)
        if not image_processor.do_normalize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        self.channels = mean.shape[1]
        self.scale = image_processor.rescale_factor / std
        self.shift = mean / std
        if all((values == values[:, :1]).all() for values in (self.scale, self.shift)):
            # Three equal channels of a grey image are one, seen three times: a third of the work and of the memory.
            self.scale, self.shift = self.scale[:, :1], self.shift[:, :1]
        self.pad_token_id, self.start_token_id = pad_token_id, start_token_id or 0

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any]
        if "states" in items[0]:
            batch = {"encoder_outputs": (torch.from_numpy(np.stack([item["states"] for item in items])),)}
        else:
            batch = {"pixel_values": self._pixels(items, "canvas")}
        if "other_canvas" in items[0]:
            batch["other_pixel_values"] = self._pixels(items, "other_canvas")
        if "labels" not in items[0]:
            return batch
        if self.pad_token_id is None:
            batch["labels"] = torch.tensor(np.stack([item["labels"] for item in items]), dtype=torch.float32)
            return batch
        prompts = [item.get("prompt", []) for item in items]
        pairs = list(zip(prompts, (item["labels"] for item in items), strict=True))
        batch["labels"] = _padded(([IGNORED] * len(prompt) + text for prompt, text in pairs), IGNORED)
        whole = _padded(([self.start_token_id, *prompt, *text] for prompt, text in pairs), self.pad_token_id)
        return batch | {"decoder_input_ids": whole[:, :-1]}

    def _pixels(self, items: list[dict[str, Any]], name: str) -> torch.Tensor:
        grey = torch.from_numpy(np.stack([item[name] for item in items]))[:, None]
        return (grey * self.scale).sub_(self.shift).expand(-1, self.channels, -1, -1)


def _padded(rows: Iterable[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
