"""Export a checkpoint to ONNX and run it without torch: `python scripts/export_onnx.py CHECKPOINT OUT`.

transformers' own exporter does the work (`pip install onnx onnxscript onnxruntime`). OUT gets `encoder.onnx`,
`prefill.onnx` (first step), `decode.onnx` (later steps), the tokenizer and the configs of image processor and
generation. `Runner` needs numpy and onnxruntime alone; it has no beam search. docs/interoperability.md tells the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def export(source: str, out: str | Path):
    """Write the three graphs and what they need to `out`. Returns the torch model and the canvases of noise used."""
    import onnx_ir.passes.common
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    from hf_cxr.models.modeling import load_checkpoint

    checkpoint = load_checkpoint(source)
    model = checkpoint.model.eval().float()
    size = (checkpoint.image_processor.size[side] for side in ("height", "width"))
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    # Two studies and three tokens: an axis whose example is 1 long would be fixed at 1 (the past after one token is).
    example = {"pixel_values": pixels}
    example["decoder_input_ids"] = torch.full((2, 3), model.generation_config.decoder_start_token_id)
    graphs = OnnxExporter().export_for_generation(model, example, OnnxConfig(dynamic=True))
    only_batch = OnnxConfig(dynamic_shapes={"pixel_values": {0: torch.export.Dim.AUTO}})
    encoder = OnnxExporter().export(model.encoder, {"pixel_values": pixels}, only_batch)
    graphs.components["encoder"] = encoder.components["model"]
    for component in graphs.components.values():  # stack traces hold paths of this machine
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(component.program)
    graphs.save_pretrained(out)
    for part in (checkpoint.tokenizer, checkpoint.image_processor, model.generation_config):
        part.save_pretrained(out)
    return model, pixels


class Runner:
    """The three graphs of a folder, in onnxruntime."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads  # 0: one a core
        self.sessions = {
            stage: onnxruntime.InferenceSession(Path(folder) / f"{stage}.onnx", settings, ["CPUExecutionProvider"])
            for stage in ("encoder", "prefill", "decode")
        }
        self.config = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8"))

    def _run(self, stage: str, feed: dict[str, np.ndarray], *wanted: str) -> dict[str, np.ndarray]:
        session = self.sessions[stage]
        names = [output.name for output in session.get_outputs() if any(part in output.name for part in wanted)]
        return dict(zip(names, session.run(names, {i.name: feed[i.name] for i in session.get_inputs()}), strict=True))

    def greedy(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (batch, length) and texts' probabilities (batch,) of normalised float32 (batch, 3, height, width).

        The probability of a text that was cut short is 0."""
        states = self._run("encoder", {"pixel_values": pixel_values}, "")
        feed = {f"encoder_outputs.{name}": value for name, value in states.items()}
        tokens = np.full((len(pixel_values), 1), self.config["decoder_start_token_id"], np.int64)
        written, log_probability = [tokens], np.zeros(len(pixel_values))
        ended = np.zeros(len(pixel_values), bool)
        for step in range(self.config["max_new_tokens"]):
            stage, caches = ("decode", "self_attention") if step else ("prefill", "past_key_values")
            out = self._run(stage, feed | {"decoder_input_ids": tokens}, "logits", caches)
            logits = out.pop("logits")[:, -1].astype(np.float64)
            feed |= {f"input.{name.removeprefix('output.')}": cache for name, cache in out.items()}
            best = logits.max(1)
            log_probability -= np.where(ended, 0, np.log(np.exp(logits - best[:, None]).sum(1)))
            tokens = np.where(ended, self.config["pad_token_id"], logits.argmax(1))[:, None]
            written.append(tokens)
            if (ended := ended | np.isin(tokens[:, 0], self.config["eos_token_id"])).all():
                break
        return np.concatenate(written, axis=1), np.exp(log_probability) * ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    args = parser.parse_args()
    from hf_cxr.inference.pipeline import generate

    model, pixels = export(args.checkpoint, args.out)
    told, (tokens, probabilities) = generate(model, pixels), Runner(args.out).greedy(pixels.numpy())
    same = np.array_equal(told["sequences"][:, 0], tokens) and np.allclose(
        told["scores"][:, 0], probabilities, rtol=1e-3, atol=0
    )
    print(f"{args.out}: onnxruntime writes {'the same as' if same else 'something OTHER than'} torch on noise")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
