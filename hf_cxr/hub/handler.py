"""What Inference Endpoints call: `hf-cxr push --endpoint` puts this file beside a checkpoint, as `handler.py`. It
imports nothing else of the kit, since the checkpoint brings its pipeline."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from PIL import Image
from transformers import pipeline

VIEWS = ("frontal", "lateral")
CONTEXT = ("indication", "comparison", "age_sex", "age", "sex")
PARAMETERS = ("max_new_tokens", "num_beams", "return_findings", "abstain_below")


class EndpointHandler:
    """Loads the checkpoint in the folder `path` once, and answers requests."""

    def __init__(self, path: str = "") -> None:
        self.pipe = pipeline("chest-radiograph-impression", model=path, trust_remote_code=True)

    def __call__(self, data: Mapping[str, Any]) -> list[Any]:
        """
        Args:
            data: `inputs` is a study, `{"frontal": image, "lateral": image, "indication": text}`, in which either view
                may be missing; or an image alone, which is a frontal view; or a list of these. An image is a PNG, JPEG
                or DICOM file in base64, its bytes, or a Pillow image. `parameters`: `max_new_tokens`, `num_beams`,
                `return_findings`, `abstain_below`.

        Returns what the pipeline does. An image that cannot be read gives an answer with its `error`.

        Raises `ValueError` for anything else, such as a path or an address: none is read.
        """
        parameters = dict(data.get("parameters") or {})
        if unknown := sorted(set(parameters) - set(PARAMETERS)):
            raise ValueError(f"unknown parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}")
        inputs = data.get("inputs")
        studies = [_study(one) for one in inputs] if isinstance(inputs, list) else _study(inputs)
        return self.pipe(studies, on_unreadable="skip", **parameters)


def _study(given: Any) -> dict[str, Any]:
    study = dict(given) if isinstance(given, Mapping) else {"frontal": given}
    if unknown := sorted(map(str, set(study) - {*VIEWS, *CONTEXT})):
        raise ValueError(f"a study has {', '.join(VIEWS)} and perhaps {', '.join(CONTEXT)}, not {unknown[0]!r}")
    images = {view: _image(view, study.get(view)) for view in VIEWS}
    if not any(image is not None for image in images.values()):
        raise ValueError("a study without an image: give its frontal view, its lateral view or both")
    return study | images


def _image(view: str, given: Any) -> bytes | Image.Image | None:
    if given is None or isinstance(given, (bytes, Image.Image)):
        return given
    try:
        return base64.b64decode(given, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(
            f"{view}: an image is a PNG, JPEG or DICOM file in base64; no path or address is read"
        ) from None
