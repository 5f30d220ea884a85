"""`shrink_graphs`: the two graphs of an export in 16-bit floats or with matrices as 8-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hf_cxr.serving.runner import Runner

MATRICES = ["MatMul", "Gemm"]
GRAPHS = ("encoder", "decoder")
CALIBRATED = 16  # studies; every step of their texts counts
Feeds = Sequence[dict[str, Any]]
"""What the decoder is given for some studies, as `OrtValue`s."""


def feeds_of(runner: Runner, dataset: str | Path) -> Feeds:
    """What the decoder is given while it writes for the first studies of a validation split."""
    from hf_cxr.data.prepared import load_prepared

    split = load_prepared(dataset)["validation"]
    runner.decoder = recorded = _Recorded(runner.decoder)
    for _ in runner(iter(split.select(range(min(len(split), CALIBRATED)))), on_unlikely="ignore"):
        pass
    return recorded.feeds


class _Recorded:
    """A session that keeps what it is given, in onnxruntime's memory: the steps of a text share most of it."""

    def __init__(self, session: Any) -> None:
        self.session, self.feeds = session, list[dict[str, Any]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_ort_values(self, names: list[str], feed: dict[str, Any]) -> Any:
        self.feeds.append(dict(feed))
        return self.session.run_with_ort_values(names, feed)


def shrink_graphs(folder: Path, weights: str, feeds: Feeds | None = None) -> None:
    """Write the graphs of `folder` anew.

    Args:
        weights: "float16" or "int8".
        feeds: inputs whose ranges set how those of each matrix of the decoder are rounded; default: each by its own
            range, as it comes. So are the encoder's in any case: fixed, they lose too much.
    """
    for name in GRAPHS:
        file = folder / f"{name}.onnx"
        model = onnx.load(file)
        if weights == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=["pixel_values", "mask", "logits"])
        else:
            model = _integers(model, folder, feeds if name == "decoder" else None)
        for old in (file, folder / f"{file.name}.data"):
            old.unlink()
        onnx.save_model(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)


def _integers(model: onnx.ModelProto, folder: Path, feeds: Feeds | None) -> onnx.ModelProto:
    """A graph whose matrices are 8-bit integers, scaled column by column."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    table = _turn(model)
    turned, quantized = folder / "turned.onnx", folder / "quantized.onnx"
    common: dict[str, Any] = {"op_types_to_quantize": MATRICES, "per_channel": True, "weight_type": QuantType.QInt8}
    common |= {"use_external_data_format": True, "extra_options": {"MatMulConstBOnly": True}}
    onnx.save_model(model, turned, save_as_external_data=True, location=f"{turned.name}.data")
    try:
        if feeds is None:
            quantize_dynamic(turned, quantized, **common)
        else:
            quantize_static(
                turned,
                quantized,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                **common,
            )
        made = onnx.load(quantized)
    finally:
        for file in (*folder.glob("turned.onnx*"), *folder.glob("quantized.onnx*")):
            file.unlink()
    if table:
        _share(made, *table)
    return made


def _turn(model: onnx.ModelProto) -> tuple[str, str] | None:
    """Turn each matrix that the graph turns before it multiplies, so that it is a constant.

    Returns the names of one that is turned and looked up too, as GPT-2's table of tokens is, and of its turned form.
    """
    graph, both = model.graph, None
    weights = {one.name: one for one in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        array = numpy_helper.to_array(weights[node.input[0]])
        if array.ndim == 2:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0]))
            graph.node.remove(node)
            if any(other.op_type == "Gather" and other.input[0] == node.input[0] for other in graph.node):
                both = node.input[0], node.output[0]
    used = {name for node in graph.node for name in node.input}
    for name, one in weights.items():
        if name not in used:
            graph.initializer.remove(one)
    return both


def _share(model: onnx.ModelProto, table: str, turned: str) -> None:
    """Look tokens up in the 8-bit matrix that is multiplied with, (size, vocabulary), and drop the table itself."""
    graph = model.graph
    names = {one.name for one in graph.initializer}
    if not {f"{turned}_quantized", f"{turned}_scale"} <= names:
        return
    for place, node in enumerate(graph.node):
        if node.op_type == "Gather" and node.input[0] == table:
            ids, out = node.input[1], node.output[0]
            graph.node.remove(node)
            made = [
                helper.make_node("Gather", [f"{turned}_quantized", ids], [f"{table}.columns"], axis=1),
                helper.make_node("Cast", [f"{table}.columns"], [f"{table}.numbers"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Gather", [f"{turned}_scale", ids], [f"{table}.scales"]),
                helper.make_node("Mul", [f"{table}.numbers", f"{table}.scales"], [f"{table}.values"]),
                helper.make_node("Transpose", [f"{table}.values"], [out], perm=[1, 2, 0]),
            ]
            for offset, new in enumerate(made):
                graph.node.insert(place + offset, new)
            break
    graph.initializer.remove(next(one for one in graph.initializer if one.name == table))


class _Reader:
    """Feeds one by one, as onnxruntime's calibration takes them."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = ({name: value.numpy() for name, value in feed.items()} for feed in feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)
