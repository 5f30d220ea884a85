"""hf-cxr: fine-tune vision-encoder-decoder models that write the impression of a two-view chest radiograph study.

Importing this package is light: the names below load what they need on first use, and the `cxr-impression` task is
registered with transformers when (and only when) `transformers.pipelines` is loaded. Research use only.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Study": "data.study",
    "clean_text": "data.study",
    "pack_views": "inference.views",
    "read_radiograph": "inference.views",
    "label": "inference.labeler",
    "positive_findings": "inference.labeler",
    "load_studies": "data.prepare",
    "prepare": "data.prepare",
    "metric_path": "metrics",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_cxr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_cxr.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))


class _PipelinesWatch(MetaPathFinder):
    """Imports the pipeline, which registers its task, right after `transformers.pipelines`, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name != "transformers.pipelines":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            importlib.import_module("hf_cxr.inference.pipeline")

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "transformers.pipelines" in sys.modules:
    importlib.import_module("hf_cxr.inference.pipeline")
else:
    sys.meta_path.insert(0, _PipelinesWatch())
