"""`ImpressionProcessor`: two views and a text in, what the model is trained on out; and texts back from tokens.

A checkpoint brings this file as remote code. How an image is read lives in `inputs.py`, the canvas in `views.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from .checks import panel_size_of, panels_of
from .inputs import context_among, read_views
from .remote_code import add_code
from .sections import Layout, prompt_ids, report_ids
from .targets import IGNORED
from .views import UnreadableImage, ViewSource, enough, shown_of


class ImpressionProcessor(ProcessorMixin):
    """The image processor and the tokenizer of a checkpoint as one: both views of a study go on one canvas, or one
    view (the frontal, if there is one) into a checkpoint of a single square image.

    A stock image processor stretches whatever it is given over both panels; this one packs the views first, as
    training and the pipeline do.

    Args:
        image_processor: set to the size of the canvas, (panel, 2 × panel), or of one image, (panel, panel).
        tokenizer: the decoder's.
        layout: the sections that the model writes and the context that it takes, as its config carries them in
            `cxr_layout`; default: an impression without context.

    Example:
        >>> processor = ImpressionProcessor.from_pretrained("runs/demo")
        >>> batch = processor(frontal="f.png", lateral="l.png", text="No acute disease.", return_tensors="pt")
        >>> loss = model(**batch).loss
        >>> processor.batch_decode(model.generate(batch["pixel_values"]), skip_special_tokens=True)
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, layout: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.layout = layout

    def __call__(
        self,
        frontal: ViewSource | list[ViewSource | None] | None = None,
        lateral: ViewSource | list[ViewSource | None] | None = None,
        text: str | list[str] | Mapping[str, str | list[str]] | None = None,
        return_tensors: str | None = None,
        max_length: int = 128,
        context: Mapping[str, str] | list[Mapping[str, str]] | None = None,
    ) -> BatchFeature:
        """Prepare one study, or a list of each for many.

        Args:
            frontal, lateral: views as `ImpressionPipeline` takes them; `None`, a view that a study does not have, is a
                black panel.
            text: what is to be learned; of a model of several sections a dict, section → text.
            return_tensors: "pt" or "np"; lists without.
            max_length: most tokens of a text, its end included.
            context: with `text`, what the model is told before it writes: `{"indication": …}`. What a study lacks is
                left out.

        Returns:
            `pixel_values`, float (studies, 3, panel, 2 × panel), normalised, if there are views; `labels`, int
            (studies, longest), closed by the end token and filled up with -100, if there are texts. For a model that
            takes context the labels begin with -100 for each token of it, and `decoder_input_ids`, of the same shape,
            hold it.

        Raises:
            ValueError: lists of different lengths, neither views nor texts, a study without any view, texts of other
                sections than the model's, context without a text, or what is no context.
            UnreadableImage: a `ValueError` that names the view, and of many studies which one, counted from 0.
        """
        layout = Layout(**{name: tuple(names) for name, names in (self.layout or {}).items()})
        given = {"frontal": frontal, "lateral": lateral, **self._sections(text, layout), "context": context}
        columns: dict[str, list] = {
            name: value if isinstance(value, list) else [value] for name, value in given.items() if value is not None
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"frontal, lateral and text hold one entry for each study, not {lengths or 'nothing'}")
        batch: dict[str, Any] = {}
        contexts = columns.pop("context", None)
        texts = {name: columns.pop(name) for name in ("text", *layout.sections) if name in columns}
        if columns:
            many = isinstance(frontal, list) or isinstance(lateral, list)
            canvases = [
                self._canvas(dict(zip(columns, views, strict=True)), f"study {place}: " if many else "")
                for place, views in enumerate(zip(*columns.values(), strict=True))
            ]
            batch["pixel_values"] = self.image_processor(canvases, return_tensors=return_tensors)["pixel_values"]
        if texts:
            texts = {layout.sections[0]: texts["text"]} if "text" in texts else texts
            batch |= self._learned(layout, texts, contexts, max_length)
        elif contexts is not None:
            raise ValueError("context goes with a text to be learned; to have one written use the pipeline")
        return BatchFeature(batch, tensor_type=return_tensors)

    @staticmethod
    def _sections(text: Any, layout: Layout) -> dict[str, Any]:
        if isinstance(text, Mapping):
            if set(text) != set(layout.sections):
                raise ValueError(f"text of {', '.join(layout.sections)}, not of {', '.join(text) or 'nothing'}")
            return dict(text)
        if text is not None and len(layout.sections) > 1:
            raise ValueError(f"text is a dict of {' and '.join(layout.sections)}: this model writes both")
        return {"text": text}

    def _learned(self, layout: Layout, texts: dict[str, list], contexts: list | None, max_length: int) -> dict:
        targets = report_ids(self.tokenizer, layout, texts, max_length)
        contexts = [context_among(context, layout.context) for context in contexts or [{}] * len(targets)]
        prompts = [prompt_ids(self.tokenizer, layout, context) for context in contexts]
        rows = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        batch = {"labels": _filled(rows, IGNORED)}
        if layout.context:
            start = self.tokenizer.bos_token_id
            rows = [[start, *prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)]
            batch["decoder_input_ids"] = _filled(rows, self.tokenizer.pad_token_id)
        return batch

    def _canvas(self, study: dict[str, Any], which: str) -> Any:
        size, panels = panel_size_of(self.image_processor), panels_of(self.image_processor)
        try:
            views, _ = read_views(study, at_least=enough(size) if panels > 1 else None)
            return shown_of(views, size, panels)[0]
        except ValueError as error:
            raise UnreadableImage(f"{which}{error}") from error

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "labels", "decoder_input_ids"]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the parts, each in its own file as the stock classes read them, and the code that
        `AutoProcessor.from_pretrained(…, trust_remote_code=True)` runs where the kit is not installed."""
        if push_to_hub:
            raise ValueError("save_pretrained does not push: use hf-cxr push, or push_to_hub of the processor")
        add_code(save_directory, self.layout)
        for part in (self.tokenizer, self.image_processor):
            part.save_pretrained(save_directory)


def _filled(rows: list[list[int]], value: int) -> list[list[int]]:
    longest = max(map(len, rows), default=0)
    return [row + [value] * (longest - len(row)) for row in rows]


if __package__ == "hf_cxr.inference":  # not when this file came with a checkpoint
    # Found by the name in processor_config.json. Under a config class it would be found by the config's type, for
    # everybody's vision-encoder-decoder checkpoints.
    AutoProcessor.register(ImpressionProcessor, ImpressionProcessor)
