"""Stand-ins for the commonest published checkpoints of one square image, as their folders on the Hub are: configs of
earlier versions, no more files than needed, random weights that write another text for nearly every image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from helpers import TEXTS
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertGenerationConfig,
    BertGenerationDecoder,
    GPT2Config,
    GPT2LMHeadModel,
    Swinv2Config,
    Swinv2Model,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from hf_cxr.data.prepare import prepare
from hf_cxr.models.modeling import train_tokenizer
from hf_cxr.training.trainer import part_name

SIDE = 48
STEPS = 100  # of one that is taught
FORMS = ("swin", "bert", "gpt2")
VIT = {"do_normalize": True, "do_resize": True, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGES: dict[str, dict[str, Any]] = {
    "swin": {**VIT, "feature_extractor_type": "ViTFeatureExtractor", "size": SIDE},
    "bert": {
        **VIT,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE + 8},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.48, 0.45, 0.4],
        "resample": 3,
    },
    "gpt2": {**VIT, "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}},
}


def published(form: str, folder: Path, taught: Dataset | None = None) -> Path:
    """One of `FORMS`: "swin" (Swin v2, 2 layers of BERT generation, no generation_config.json, left-over weights of a
    pooler), "bert" (the same with vocab.txt and a crop) or "gpt2" (ViT and GPT-2: begin, end and padding in one).

    Args:
        taught: studies whose impressions it learns to write, as "gpt2" does in seconds; without them its weights are
            random ones.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    pad, start = _tokenizer(form, folder)
    if form == "gpt2":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        encoder = ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **sizes))
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        decoder = GPT2LMHeadModel(GPT2Config(vocab_size=350, add_cross_attention=True, **sizes))
    else:
        sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
        encoder = Swinv2Model(Swinv2Config(image_size=SIDE, patch_size=4, **sizes))
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        options = {"is_decoder": True, "add_cross_attention": True, "max_position_embeddings": 64}
        decoder = BertGenerationDecoder(BertGenerationConfig(vocab_size=350, **options, **sizes))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    if taught:
        ids = {"eos_token_id": start + 1, "pad_token_id": pad, "decoder_start_token_id": start}
        _teach(model, folder, taught, ids)
    else:
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if weights.ndim > 1:
                    weights.mul_(6 if part_name(name) == "decoder" else 12)
        ids = _ids(model, form, pad, start)
    if form == "gpt2":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        end = tokenizer.convert_ids_to_tokens(ids["eos_token_id"])
        tokenizer.add_special_tokens({"bos_token": end, "eos_token": end})
        tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES[form]), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if form == "gpt2":
        own = {"max_length": 16, "num_beams": 4, "early_stopping": True, **ids}
        (folder / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    else:
        config |= {"max_length": 16, **ids}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.pooler.left.over"] = torch.zeros(3)
    save_file(
        {name: one for name, one in weights.items() if "pooler.dense" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def _tokenizer(form: str, folder: Path) -> tuple[int, int]:
    """Write it, and return the tokens for padding and start."""
    if form == "bert":
        words = sorted({word for text in TEXTS for word in text.lower().replace(".", " . ").split()})
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"w{i}" for i in range(400))][:350]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
        return 0, 2
    tokenizer = train_tokenizer(TEXTS, 350)
    if form == "gpt2":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return 0, 1


def _ids(model: VisionEncoderDecoderModel, form: str, pad: int, start: int) -> dict[str, int]:
    """The special tokens; the end is one that some texts reach and others do not."""
    noise = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for end in range(3, 350):
        same = form == "gpt2"
        ids = {"eos_token_id": end, "pad_token_id": end if same else pad}
        ids |= {"decoder_start_token_id": end if same else start} | ({"bos_token_id": end} if same else {})
        rows = model.generate(noise, max_length=16, **ids)[:, 1:]
        if len({int((row == end).int().argmax()) for row in rows}) > 1 and 0 < sum((rows == end).any(1)) < 8:
            return ids
    raise AssertionError("no token ends some of the texts")


def _teach(model: VisionEncoderDecoderModel, folder: Path, studies: Dataset, ids: dict[str, int]) -> None:
    """Some passes over their frontal views, as stock classes train."""
    model.config.update(ids)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(list(studies["impression"]), add_special_tokens=False)["input_ids"]
    rows = [torch.tensor([*row, ids["eos_token_id"]]) for row in encoded]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    grey = torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in studies["frontal"]])
    pixels = grey[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    optimiser = torch.optim.AdamW(model.train().parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(studies), (32,))
        optimiser.zero_grad()
        model(pixel_values=pixels[batch], labels=labels[batch]).loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


def planted(folder: Path) -> Path:
    """A prepared dataset whose reports can be read off the images: `TEXTS` by where a bright square lies, one in ten
    of them wrong. 120 studies to learn from, 60 to calibrate on, 60 to score; some have a lateral view alone."""
    random, lines = np.random.default_rng(0), ["uid,frontal,lateral,impression,split"]
    folder.mkdir()
    for number in range(240):
        kind = int(random.integers(4))
        pixels = random.integers(0, 120, (SIDE, SIDE), dtype=np.uint8)
        top, left = 6 + 20 * (kind // 2), 6 + 20 * (kind % 2)
        pixels[top : top + 16, left : left + 16] += 120
        Image.fromarray(pixels).save(folder / f"{number}.png")
        said = TEXTS[int(random.integers(4)) if random.random() < 0.1 else kind]
        views = f",{number}.png" if number % 20 == 19 else f"{number}.png,"
        lines.append(f"{number},{views},{said},{('train', 'train', 'validation', 'test')[number % 4]}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare("table", folder / "dataset", root=folder / "table.csv", size=SIDE)
    return folder / "dataset"


def stock_texts(folder: Path, images: Sequence[Image.Image], **options: Any) -> list[str]:
    """What stock classes write, each image alone through the checkpoint's own image processor."""
    model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    processor = stock_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for image in images:
        pixels = processor(image.convert("RGB"), return_tensors="pt").pixel_values
        texts += tokenizer.batch_decode(model.generate(pixels, **options), skip_special_tokens=True)
    return [text.strip() for text in texts]


def stock_processor(folder: Path) -> Any:
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def edit(file: Path, **values: Any) -> None:
    """Change a JSON file; `None` takes a name out."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    content = {name: value for name, value in content.items() if value is not None}
    file.write_text(json.dumps(content), encoding="utf-8")
