"""What `throughput.py` races the kit against: a dataset as the tutorials on `VisionEncoderDecoderModel` write it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from hf_cxr.inference.targets import IGNORED
from hf_cxr.models.modeling import Checkpoint

VIEWS = ("frontal", "lateral")


def panel(path: str, size: int) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L").resize((size, size), Image.Resampling.BICUBIC)  # grey: a third of RGB's work


class TutorialDataset(torch.utils.data.Dataset):
    """What the tutorials' `__getitem__` does, done well: open, shrink, put side by side, process, tokenize."""

    def __init__(self, studies: list[dict[str, str]], checkpoint: Checkpoint, panel: int, length: int, pad: bool):
        self.studies, self.panel, self.length, self.pad = studies, panel, length, pad
        self.tokenizer, self.image_processor = checkpoint.tokenizer, checkpoint.image_processor

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict[str, Any]:
        study = self.studies[index]
        canvas = Image.new("RGB", (2 * self.panel, self.panel))
        for place, view in enumerate(VIEWS):
            if view in study:
                canvas.paste(panel(study[view], self.panel), (place * self.panel, 0))
        pixels = self.image_processor(canvas, return_tensors="pt")["pixel_values"][0]
        text = study["text"] + self.tokenizer.eos_token
        padding = {"padding": "max_length"} if self.pad else {}
        encoded = self.tokenizer(text, truncation=True, max_length=self.length, add_special_tokens=False, **padding)
        labels = [
            token if seen else IGNORED
            for token, seen in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        return {"pixel_values": pixels, "labels": labels}
