"""hf-cxr: fine-tune vision-encoder-decoder models that write the impression of a two-view chest radiograph study.

Importing this package is light: the names below load what they need on first use, and the `cxr-impression` task and
`ImpressionProcessor` are registered with transformers when it is loaded. Research use only, not for diagnosis.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Study": "data.study",
    "clean_text": "data.study",
    "load_studies": "data.prepare",
    "prepare": "data.prepare",
    "CanvasCollator": "data.collator",
    "pack_views": "inference.views",
    "read_radiograph": "inference.views",
    "label": "inference.labeler",
    "positive_findings": "inference.labeler",
    "ImpressionPipeline": "inference.pipeline",
    "ImpressionProcessor": "inference.processor",
    "metric_path": "metrics",
    "build": "models.modeling",
    "load_checkpoint": "models.modeling",
    "evaluate": "evaluation.evaluate",
    "evaluate_texts": "evaluation.external",
    "predict": "evaluation.prediction",
    "train": "training.api",
    "ImpressionTrainer": "training.trainer",
    "ImpressionConfig": "config",
    "ImpressionTrainingArguments": "config",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_cxr' has no attribute {name!r}")
    return getattr(import_module(f"hf_cxr.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


# A module of transformers → ours, which registers itself there. transformers reads no entry points, and importing it
# here would take seconds; so ours is imported right after it, at once if it is there already.
_REGISTERED_AFTER = {
    "transformers.models.auto.processing_auto": "hf_cxr.inference.processor",
    "transformers.pipelines": "hf_cxr.inference.pipeline",
}


class _ImportAfter(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in _REGISTERED_AFTER:
            return None
        ours, spec = _REGISTERED_AFTER.pop(name), find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_both(module):
                load(module)
                import_module(ours)

            spec.loader.exec_module = load_both  # type: ignore[method-assign]
        return spec


for _name in [name for name in _REGISTERED_AFTER if name in sys.modules]:
    import_module(_REGISTERED_AFTER.pop(_name))
sys.meta_path.insert(0, _ImportAfter())
