"""Small real things that several test files need: radiographs, tiny checkpoints, pretrained parts in Hub form."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_cxr.data.sources import phantom
from hf_cxr.data.study import Study
from hf_cxr.models.modeling import Checkpoint, build, train_tokenizer
from hf_cxr.training.trainer import part_name

ROOT = Path(__file__).parents[1]
# The smallest recipe that goes the whole way; a test states only what differs.
TINY_RECIPE = {
    "encoder": "tiny",
    "decoder": "tiny",
    "panel_size": 32,
    "vocab_size": 400,
    "max_target_length": 24,
    "num_train_epochs": 1,
    "save_strategy": "no",
    "use_cpu": True,
}
TEXTS = [
    "No acute cardiopulmonary abnormality.",
    "Small right pleural effusion.",
    "1. Cardiomegaly. 2. Left basilar atelectasis.",
    "Stable 1.2 cm nodule in the left upper lobe.",
] * 5


def radiograph(seed: int, height: int = 80, width: int = 70) -> np.ndarray:
    """Random grey pixels, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def tiny_checkpoint(panel_size: int = 32, max_new_tokens: int = 12) -> Checkpoint:
    torch.manual_seed(0)
    return build("tiny", "tiny", panel_size, texts=TEXTS, vocab_size=350, max_new_tokens=max_new_tokens)


def vit_folder(folder: Path, image_size: int = 64, patch_size: int = 16, hidden: int = 32) -> str:
    """A pretrained square ViT in Hub form, with random weights."""
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        image_size=image_size,
        patch_size=patch_size,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return str(folder)


def gpt2_folder(folder: Path, **sizes: int) -> str:
    """A pretrained GPT-2 in Hub form, with random weights: one end-of-text token for begin and end, no padding."""
    tokenizer = train_tokenizer(TEXTS, 350)
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2} | sizes
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def bert_checkpoint(folder: Path) -> Checkpoint:
    """A tiny encoder with a BERT decoder that is saved in `folder` before."""
    gpt2_folder(folder)  # for its tokenizer
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=400, max_position_embeddings=64, is_decoder=True, **sizes)
    BertLMHeadModel(config).save_pretrained(folder)
    return build("tiny", str(folder), 32, texts=TEXTS, max_new_tokens=12)


def write_config(path: Path, **values) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""First line of a process to be interrupted: one started in the background (`make test &`) inherits deaf ears."""


def run_installed(*words: object, timeout: float | None = 300) -> subprocess.CompletedProcess:
    """The installed `hf-cxr` command, as a user runs it."""
    command = Path(sys.executable).with_name("hf-cxr")
    return subprocess.run([str(command), *map(str, words)], capture_output=True, text=True, timeout=timeout)


def run_cxr(*words: object, **task: object) -> subprocess.CompletedProcess:
    """An `hf-cxr` command in a process of its own, which spares itself the seconds of imports."""
    return run_forked(words=list(map(str, words)), **task)


def run_forked(**task: object) -> subprocess.CompletedProcess:
    """A task of tests/command_runner.py, in the environment that this process has now."""
    runner = _runner()
    try:
        runner.stdin.write(json.dumps({"environment": dict(os.environ), "folder": str(Path.cwd())} | task) + "\n")
        runner.stdin.flush()
        answer = json.loads(runner.stdout.readline())
    except BaseException:  # a timeout: the next task must not get this one's answer
        runner.kill()
        _runner.cache_clear()
        raise
    return subprocess.CompletedProcess([], answer["status"], answer["stdout"], answer["stderr"])


@functools.cache
def _runner() -> subprocess.Popen:
    """Ends with this process, which holds its stdin."""
    words = [sys.executable, str(ROOT / "tests" / "command_runner.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork that inherits a pool of threads waits for ever
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def copy_folder(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@contextmanager
def told_more() -> Iterator[None]:
    """Meanwhile the phantom says of each study all that a collection can say of one."""
    plain = phantom.studies

    @functools.wraps(plain)
    def fuller(**options: int) -> Iterator[Study]:
        for number, study in enumerate(plain(**options)):
            images = tuple(replace(one, projection=("AP", "PA")[number % 2]) for one in study.images)
            said = {"comparison": "1. Compared to ___", "technique": "PA and lateral .", "uncertain": ("mass",)}
            yield replace(study, images=images, age=20 + number, sex="FM"[number % 2], **said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "studies", fuller)
        yield


def state_licence(dataset: Path, licence: str) -> None:
    """Have the card of a prepared dataset name another licence, in the words of YAML."""
    card = dataset / "README.md"
    text, changed = re.subn(r"(?m)^license: .*$", f"license: {licence}", card.read_text(encoding="utf-8"), count=1)
    assert changed
    card.write_text(text, encoding="utf-8")


STUDIES = 8
"""Canvases of noise that a talkative checkpoint is made for."""


def talkative(checkpoint: Checkpoint, eyes: int = 1) -> Checkpoint:
    """The checkpoint with matrices six times as large, those that look (encoder, cross-attention) `eyes` times that:
    each study gets a text of its own, of several words. The end token becomes one that some texts reach, so that rows
    end at different steps and the longest at the last."""
    model = checkpoint.model.eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.mul_(6 if part_name(name) == "decoder" else 6 * eyes)
    rows = [row[1:] for row in model.generate(noise()).tolist()]
    written = {token for row in rows for token in row} - {model.generation_config.pad_token_id}
    ending = {token: sum(token in row[:-1] for row in rows) for token in written}
    late = [token for token in written if all(row.index(token) > 1 for row in rows if token in row)]
    model.generation_config.eos_token_id = max(late, key=lambda token: (ending[token] < STUDIES, ending[token], token))
    return checkpoint


def noise(number: int = STUDIES) -> torch.Tensor:
    return torch.rand(number, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


class _Boxes(HTMLParser):
    """Each table and image of a page with the classes of what it is inside of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.around: list[str] = []
        self.found: list[tuple[str, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "img"):
            self.found.append((tag, self.around.copy()))
        if tag == "div":
            self.around.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag):
        if tag == "div":
            self.around.pop()


def assert_fits_a_phone(html: str) -> None:
    """Every table scrolls inside its own box, and nothing else has a width of its own above 390 pixels."""
    found = _Boxes(html).found
    assert {tag for tag, _ in found} == {"table", "img"}
    assert all("scroll" in around[-1] for tag, around in found if tag == "table")
    css = html[html.index("<style>") : html.index("</style>")]
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", css)
    assert all(re.search(rf"\.{box} img \{{[^}}]*width: 100%", css) for box in {a[-1] for t, a in found if t == "img"})
    widths = re.findall(r"(?<![a-z-])(?:min-)?width: ([\d.]+)(px|rem)|minmax\(([\d.]+)(px|rem)", css)
    assert widths
    for number, unit in ([part for part in match if part] for match in widths):
        assert float(number) * {"px": 1, "rem": 16}[unit] <= 390
    assert not re.search(r"<svg[^>]*\swidth=|\sstyle=\"[^\"]*(?<![\w-])width:", html)
