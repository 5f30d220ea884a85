"""Exported checkpoints for the tests of `hf_cxr.serving`."""

from dataclasses import dataclass
from pathlib import Path

from helpers import bert_checkpoint, talkative, tiny_checkpoint

from hf_cxr.inference.checks import CALIBRATION, LAYOUT
from hf_cxr.inference.sections import PLAIN, Layout
from hf_cxr.models.modeling import Checkpoint
from hf_cxr.serving.onnx_export import export_onnx

CURVE = {"event": "…", "n": 99, "x": [0.0, 1e-9, 1.0], "y": [0.2, 0.6, 0.8]}
REPORT = Layout(("findings", "impression"), ("indication", "age_sex"))


@dataclass
class Exported:
    checkpoint: Checkpoint
    run: Path
    folder: Path


def exported_checkpoint(place: Path, layout: Layout = PLAIN, decoder: str = "gpt2") -> Exported:
    """A checkpoint whose texts differ from study to study, saved as a run, and its export."""
    (place / "decoder").mkdir()
    checkpoint = bert_checkpoint(place / "decoder") if decoder == "bert" else tiny_checkpoint()
    if layout.tokens:
        checkpoint.tokenizer.add_special_tokens({"extra_special_tokens": layout.tokens})
        checkpoint.model.decoder.resize_token_embeddings(len(checkpoint.tokenizer))
        checkpoint.model.config.vocab_size = checkpoint.model.config.decoder.vocab_size
    checkpoint = talkative(checkpoint, eyes=2 if layout.tokens else 1)
    setattr(checkpoint.model.config, LAYOUT, layout.saved())
    setattr(checkpoint.model.config, CALIBRATION, CURVE)
    checkpoint.save_pretrained(place / "run")
    (place / "run" / "README.md").write_text("the card")
    (place / "run" / "figures").mkdir()
    (place / "run" / "figures" / "risk.png").write_bytes(b"a figure")
    export_onnx(place / "run", place / "onnx")
    return Exported(checkpoint, place / "run", place / "onnx")
