"""Traced graphs compute the sizes of every tensor they reshape, layer by layer: half of their operators.

Each is in fact a fixed pattern: copies of sizes (0), constants, at most one size that follows from the rest (-1). The
patterns are inferred from two runs at different sizes: what agrees in both does so for a reason. What is not such a
pattern (rows from texts) is computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import require

Feeds = Mapping[str, NDArray[Any]]


def simplify_shapes(model: Any, traced: Path, runs: Sequence[Feeds]) -> None:
    """Replace the computed shapes of all reshapes by constants if they follow a pattern.

    Args:
        model: an `onnx.ModelProto`, changed in place.
        traced: the file it was read from; another is written next to it.
        runs: two sets of inputs whose varying sizes all differ, from each other and between the runs.
    """
    import onnx

    constants = {constant.name for constant in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[1] not in constants]
    inner = sorted({name for node in reshapes for name in node.input} - {value.name for value in model.graph.input})
    first, second = (dict(zip(inner, values, strict=True)) for values in _inner_values(model, inner, traced, runs))
    computed: dict[tuple[int, ...], str] = {}
    for node in reshapes:
        data, shape = node.input
        pattern = [
            int(old) if old == new else 0 if _copied(place, old, new, first[data].shape, second[data].shape) else -1
            for place, (old, new) in enumerate(zip(first[shape], second[shape], strict=True))
        ]
        if pattern.count(-1) > 1:
            node.input[1] = computed.setdefault((*first[shape], *second[shape]), shape)
            continue
        name = "shape_" + "_".join(map(str, pattern))
        if name not in constants:
            constants.add(name)
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(pattern, np.int64), name))
        node.input[1] = name


def _copied(place: int, old: int, new: int, first: Sequence[int], second: Sequence[int]) -> bool:
    return place < len(first) and old == first[place] and new == second[place]


def _inner_values(model: Any, names: list[str], traced: Path, runs: Sequence[Feeds]) -> list[list[NDArray[Any]]]:
    """The values of tensors inside the graph in each run."""
    onnx, ort = require("onnx", "export"), require("onnxruntime", "serve")
    watched = onnx.ModelProto()
    watched.CopyFrom(onnx.load(traced, load_external_data=False))
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    path = traced.with_name("watched.onnx")
    onnx.save(watched, path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(names, dict(feeds)) for feeds in runs]
