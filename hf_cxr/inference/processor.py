"""`ImpressionProcessor`: two views and a text in, what the model is trained on out; and texts back from tokens.

A checkpoint brings this file as remote code. How an image is read lives in `inputs.py`, the canvas in `views.py`.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from .checks import panel_size_of, panels_of
from .inputs import read_views
from .remote_code import add_code
from .targets import IGNORED, target_ids
from .views import UnreadableImage, ViewSource, enough, shown_of


class ImpressionProcessor(ProcessorMixin):
    """The image processor and the tokenizer of a checkpoint as one: both views of a study go on one canvas, or one
    view (the frontal, if there is one) into a checkpoint of a single square image.

    A stock image processor stretches whatever it is given over both panels; this one packs the views first, as
    training and the pipeline do.

    Args:
        image_processor: set to the size of the canvas, (panel, 2 × panel), or of one image, (panel, panel).
        tokenizer: the decoder's.

    Example:
        >>> processor = ImpressionProcessor.from_pretrained("runs/demo")
        >>> batch = processor(frontal="f.png", lateral="l.png", text="No acute disease.", return_tensors="pt")
        >>> loss = model(**batch).loss
        >>> processor.batch_decode(model.generate(batch["pixel_values"]), skip_special_tokens=True)
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        frontal: ViewSource | list[ViewSource | None] | None = None,
        lateral: ViewSource | list[ViewSource | None] | None = None,
        text: str | list[str] | None = None,
        return_tensors: str | None = None,
        max_length: int = 128,
    ) -> BatchFeature:
        """Prepare one study, or a list of each for many.

        Args:
            frontal, lateral: views as `ImpressionPipeline` takes them; `None`, a view that a study does not have, is a
                black panel.
            text: what is to be learned.
            return_tensors: "pt" or "np"; lists without.
            max_length: most tokens of a text, its end included.

        Returns:
            `pixel_values`, float (studies, 3, panel, 2 × panel), normalised, if there are views; `labels`, int
            (studies, longest), closed by the end token and filled up with -100, if there are texts.

        Raises:
            ValueError: lists of different lengths, neither views nor texts, or a study without any view.
            UnreadableImage: a `ValueError` that names the view, and of many studies which one, counted from 0.
        """
        given = {"frontal": frontal, "lateral": lateral, "text": text}
        columns: dict[str, list] = {
            name: value if isinstance(value, list) else [value] for name, value in given.items() if value is not None
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"frontal, lateral and text hold one entry for each study, not {lengths or 'nothing'}")
        batch: dict[str, Any] = {}
        texts = columns.pop("text", None)
        if columns:
            many = isinstance(frontal, list) or isinstance(lateral, list)
            canvases = [
                self._canvas(dict(zip(columns, views, strict=True)), f"study {place}: " if many else "")
                for place, views in enumerate(zip(*columns.values(), strict=True))
            ]
            batch["pixel_values"] = self.image_processor(canvases, return_tensors=return_tensors)["pixel_values"]
        if texts is not None:
            targets = target_ids(self.tokenizer, texts, max_length)
            longest = max(map(len, targets), default=0)
            batch["labels"] = [row + [IGNORED] * (longest - len(row)) for row in targets]
        return BatchFeature(batch, tensor_type=return_tensors)

    def _canvas(self, study: dict[str, Any], which: str) -> Any:
        size, panels = panel_size_of(self.image_processor), panels_of(self.image_processor)
        try:
            views, _ = read_views(study, at_least=enough(size) if panels > 1 else None)
            return shown_of(views, size, panels)[0]
        except ValueError as error:
            raise UnreadableImage(f"{which}{error}") from error

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "labels"]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the parts, each in its own file as the stock classes read them, and the code that
        `AutoProcessor.from_pretrained(…, trust_remote_code=True)` runs where the kit is not installed."""
        if push_to_hub:
            raise ValueError("save_pretrained does not push: use hf-cxr push, or push_to_hub of the processor")
        add_code(save_directory)
        for part in (self.tokenizer, self.image_processor):
            part.save_pretrained(save_directory)


if __package__ == "hf_cxr.inference":  # not when this file came with a checkpoint
    # Found by the name in processor_config.json. Under a config class it would be found by the config's type, for
    # everybody's vision-encoder-decoder checkpoints.
    AutoProcessor.register(ImpressionProcessor, ImpressionProcessor)
