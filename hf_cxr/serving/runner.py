"""`Runner`: an exported checkpoint as a pipeline, with numpy, onnxruntime, tokenizers and Pillow and without torch or
transformers. What makes the folder lives in `onnx_export.py`, the search in `search.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from hf_cxr.inference.answers import ReadStudy, check_answer_options, finished, not_read, read_study, scored
from hf_cxr.inference.checks import check_values, curve_of, panel_size_of, panels_of, start_of
from hf_cxr.inference.inputs import many
from hf_cxr.inference.sections import layout_of, order_of, prompt_ids, split_sections
from hf_cxr.serving.search import search
from hf_cxr.utils.files import json_object
from hf_cxr.utils.places import EXPORT, is_export

TOLD = ("max_new_tokens", "num_beams", "num_return_sequences")
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # as transformers cleans texts up
NO_CROP: dict[str, Any] = {"do_center_crop": False, "crop_size": None}
NO_START: dict[str, Any] = {"decoder_start_token_id": None, "bos_token_id": None}
HIDDEN = np.float32(-1e4)  # added to the attention that is to be none; 16 bits hold it
OPTIONS = ("return_findings", "abstain_below", "on_unlikely", "on_unreadable")


class Runner:
    """An exported checkpoint, called as `hf_cxr.inference.pipeline.ImpressionPipeline` is: the same studies, the same
    answers. Of its options there are `return_findings`, `abstain_below`, `on_unlikely`, `on_unreadable`,
    `max_new_tokens`, `num_beams`, `num_return_sequences` and `batch_size`; sampling and attention maps need torch.

    Args:
        folder: what `hf-cxr export` wrote.
        threads: of one text; default: one a core.
        providers: execution providers of onnxruntime; default: the CPU's.

    Raises `FileNotFoundError` or `ValueError`, naming a file, for a folder that is not whole.
    """

    def __init__(self, folder: str | os.PathLike, threads: int = 0, providers: Sequence[str] = ()) -> None:
        check_installed("onnxruntime", "tokenizers")
        import onnxruntime

        folder = Path(folder)
        if not is_export(folder):
            raise FileNotFoundError(f"{folder}: no exported checkpoint ({EXPORT} is missing); run hf-cxr export")
        names = ("", "generation_", "preprocessor_")
        self.facts = json_object(folder / EXPORT)
        config, self.settings, image = (json_object(folder / f"{name}config.json") for name in names)
        self.config = SimpleNamespace(**config)
        self.image = SimpleNamespace(**NO_CROP | image)
        self.size, self.panels = panel_size_of(self.image), panels_of(self.image)
        self.layout, self.curve = layout_of(self.config), curve_of(self.config)
        self.tokenizer = PlainTokenizer(folder / "tokenizer.json", self.facts)
        self.longest = self.facts["positions"] - (2 if self.layout.saved() else 1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.encoder, self.decoder = (
                onnxruntime.InferenceSession(folder / f"{name}.onnx", options, [*providers, "CPUExecutionProvider"])
                for name in ("encoder", "decoder")
            )
        except Exception as error:  # onnxruntime has its own for whatever is wrong with a graph
            raise ValueError(f"{folder}: a graph cannot be loaded ({' '.join(str(error).split())[:200]})") from error

    def __call__(self, inputs: Any = None, *, frontal=None, lateral=None, batch_size: int = 1, **options: Any) -> Any:
        if inputs is None:
            inputs = {"frontal": frontal, "lateral": lateral}
        elif frontal is not None or lateral is not None:
            raise ValueError("give a study, or its views as frontal=… and lateral=…: not both")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size is a whole number of at least 1, not {batch_size!r}")
        self._check(options)
        studies = many(inputs, self.layout.context)
        if studies is None:
            return next(self._answers([inputs], 1, **options))
        answers = self._answers(studies, batch_size, **options)
        return list(answers) if isinstance(studies, list) else answers

    def _check(self, options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in (*OPTIONS, *TOLD):
                known = ", ".join((*OPTIONS, *TOLD))
                raise TypeError(f"an exported checkpoint has no option {name!r}; there are {known}")
        check_answer_options(*(options.get(name) for name in OPTIONS[1:]))
        check_values(options, self.longest)
        beams, texts = (options.get(name) or self.settings.get(name) or 1 for name in TOLD[1:])
        if texts > beams:
            raise ValueError(f"num_return_sequences is at most num_beams, {beams}, not {texts}")

    def _answers(
        self,
        studies: Any,
        batch_size: int,
        return_findings: bool = False,
        abstain_below: float | None = None,
        on_unlikely: str | None = None,
        on_unreadable: str | None = None,
        **told: Any,
    ) -> Iterator[list[dict[str, Any]]]:
        for batch in _batches(studies, batch_size):
            read = [read_study(study, self.size, self.panels, self.layout, on_unlikely or "warn") for study in batch]
            texts = iter(self._written([study for study in read if not study.errors], told))
            for study in read:
                unread = not_read(study.errors, self.layout, on_unreadable or "error")
                if unread is None:
                    rows, short = next(texts)
                    rows = scored(rows, self.layout, self.curve, short, bool(return_findings))
                    unread = finished(rows, abstain_below, study.warnings)
                yield unread

    def _written(
        self, read: Sequence[ReadStudy], told: Mapping[str, Any]
    ) -> Iterator[tuple[list[dict[str, Any]], list[bool]]]:
        """The texts of each study with their probabilities, and which of them were cut short."""
        if not read:
            return
        prompts = [prompt_ids(self.tokenizer, self.layout, study.context) for study in read]
        tokens, sums = self.generate(self.pixels([study.canvas for study in read]), prompts, **told)
        cut: Any = ~np.isin(tokens, self.ends).any(-1)
        for texts, chances, short in zip(tokens, np.where(cut, 0, np.exp(sums)), cut, strict=True):
            rows = [
                split_sections(self.tokenizer, self.layout, text) | {"score": float(chance)}
                for text, chance in zip(texts, chances, strict=True)
            ]
            yield rows, short.tolist()

    def pixels(self, images: Iterable[Image.Image]) -> np.ndarray:
        """What the checkpoint's image processor makes of images: float32 (images, 3, height, width)."""
        return np.stack([pixels_of(image, self.image) for image in images])

    @cached_property
    def ends(self) -> list[int]:
        ends = self.settings["eos_token_id"]
        return ends if isinstance(ends, list) else [ends]

    def generate(
        self, pixel_values: np.ndarray, prompts: Sequence[Sequence[int]] | None = None, **told: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the texts (studies, texts, length), without prompts and start token, padding behind the end, and
        the log-probability of each (studies, texts), as `hf_cxr.inference.generation.generate` gives them.

        Args:
            pixel_values: float32 (studies, 3, height, width), normalised.
            prompts: the tokens that stand before each text; default: none.
            told: options that take the place of those of the generation config.
        """
        once: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1}
        given = {name: value for name, value in told.items() if value is not None}
        settings = once | {name: value for name, value in self.settings.items() if value is not None} | given
        settings["eos_token_id"] = self.ends
        room = max(1, self.facts["positions"] - 1 - settings["max_new_tokens"])
        rows = [list(ids) if len(ids) <= room else [*ids[: room - 1], ids[-1]] for ids in prompts or ()]
        rows = rows or [[]] * len(pixel_values)
        longest, start = max(map(len, rows)), start_of(SimpleNamespace(**NO_START | settings))
        pad = settings["pad_token_id"]
        padding = [longest - len(ids) for ids in rows]
        prompt = np.array([[pad] * more + [start, *ids] for more, ids in zip(padding, rows, strict=True)])
        order = order_of(self.tokenizer, self.layout, self.ends, self.facts["vocabulary"], settings["max_new_tokens"])
        repeated = [np.repeat(values, settings["num_beams"], axis=0) for values in (prompt, np.array(padding))]
        steps = _Steps(self, pixel_values, repeated[1])
        tokens, sums = search(steps, repeated[0], settings, order)
        ends = np.isin(tokens, self.ends)
        tokens[ends.cumsum(-1) - ends > 0] = pad
        lengths = np.where(ends.any(-1), ends.argmax(-1) + 1, tokens.shape[-1])
        return tokens[..., : lengths.max()], sums


def check_installed(*packages: str) -> None:
    """Raises `ImportError`, telling what to do, where one is not installed."""
    if absent := [name for name in packages if find_spec(name) is None]:
        raise ImportError(f"{absent[0]} is not installed: pip install 'hf-cxr[onnx]'")


def open_checkpoint(checkpoint: str | os.PathLike, revision: str | None = None, dtype: str | None = None) -> Any:
    """What writes texts: the `Runner` of an exported folder, the `ImpressionPipeline` of any other checkpoint.

    Raises as both do, and `ValueError` for a `revision` or `dtype` of an exported folder.
    """
    if is_export(checkpoint):
        if revision or dtype:
            raise ValueError(f"{checkpoint}: exported, so without --revision or --dtype; name the run itself")
        return Runner(checkpoint)
    from hf_cxr.inference.pipeline import ImpressionPipeline
    from hf_cxr.models.modeling import load_checkpoint

    parts = load_checkpoint(checkpoint, revision, dtype)
    return ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)


class _Steps:
    """Runs the decoder step by step: keys and values of the encoder's states are made once, those of the tokens stay
    in onnxruntime's memory."""

    def __init__(self, runner: Runner, pixel_values: np.ndarray, padding: np.ndarray) -> None:
        from onnxruntime import OrtValue

        self.value, self.run = OrtValue.ortvalue_from_numpy, runner.decoder.run_with_ort_values
        self.padding, self.length, self.first = padding, 0, runner.facts["first_position"]
        self.kept = [output.name for output in runner.decoder.get_outputs() if output.name.startswith("present.")]
        names = [output.name for output in runner.encoder.get_outputs()]
        pixels = {"pixel_values": self.value(np.ascontiguousarray(pixel_values, dtype=np.float32))}
        self.feed = dict(zip(names, runner.encoder.run_with_ort_values(names, pixels), strict=True))
        if (beams := len(padding) // len(pixel_values)) > 1:
            self.feed = {name: self.value(one.numpy().repeat(beams, 0)) for name, one in self.feed.items()}
        for place in runner.decoder.get_inputs():
            if place.name.startswith("past."):
                kind = np.float16 if "float16" in place.type else np.float32
                empty = np.zeros((len(padding), place.shape[1], 0, place.shape[3]), kind)
                self.feed[place.name] = self.value(empty)

    def __call__(self, tokens: np.ndarray, source: np.ndarray | None) -> np.ndarray:
        if source is not None:
            past = [name for name in self.feed if name.startswith("past.")]
            self.feed |= {name: self.value(self.feed[name].numpy()[source]) for name in past}
            self.padding = self.padding[source]
        new, places = tokens.shape[1], np.arange(self.length + tokens.shape[1])
        own = places[self.length :]
        hidden = (places > own[:, None]) | (places < self.padding[:, None, None])
        positions = self.first + np.maximum(own - self.padding[:, None], 0)
        feed = {
            "input_ids": self.value(np.ascontiguousarray(tokens, dtype=np.int64)),
            "position_ids": self.value(positions.astype(np.int64)),
            "mask": self.value(np.where(hidden, HIDDEN, np.float32(0))[:, None]),
        }
        logits, *present = self.run(["logits", *self.kept], self.feed | feed)
        self.feed |= {name.replace("present", "past"): value for name, value in zip(self.kept, present, strict=True)}
        self.length += new
        return logits.numpy()


class PlainTokenizer:
    """What sections, prompts and texts need of a tokenizer of transformers, by its tokenizer.json alone."""

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain `Exception`
            raise ValueError(f"{file}: cannot be read ({error})") from None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a text that happens to hold "</s>" is that text
        self.all_special_ids, self.clean_up = list(facts["special_ids"]), facts["clean_up"]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.encode(text, add_special_tokens=False).ids}

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        text = self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)
        for found in CLEANED if self.clean_up else ():
            text = text.replace(found, found.strip())
        return text

    def batch_decode(self, rows: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in rows]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        one = self.tokenizer.token_to_id
        return one(tokens) if isinstance(tokens, str) else [one(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()


def pixels_of(image: Image.Image, settings: Any) -> np.ndarray:
    """What an image processor of these settings makes of an RGB image: resized, cropped, scaled, normalised; float32
    (3, height, width)."""
    if settings.do_resize:
        size, (width, height) = settings.size, image.size
        if shortest := size.get("shortest_edge"):
            short, long = shortest, int(shortest * max(width, height) / min(width, height))
            target = (short, long) if width <= height else (long, short)
        else:
            target = size["width"], size["height"]
        if target != image.size:
            image = image.resize(target, Image.Resampling(settings.resample))
    if settings.do_center_crop:
        height, width = settings.crop_size["height"], settings.crop_size["width"]
        top, left = (image.height - height) // 2, (image.width - width) // 2
        image = image.crop((left, top, left + width, top + height))
    values = np.asarray(image, dtype=np.float64)
    values = (values * settings.rescale_factor if settings.do_rescale else values).astype(np.float32)
    if settings.do_normalize:
        values = (values - np.float32(settings.image_mean)) / np.float32(settings.image_std)
    return values.transpose(2, 0, 1)


def _batches(studies: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(studies)
    while batch := list(islice(rest, size)):
        yield batch
