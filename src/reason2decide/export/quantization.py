"""Eight-bit weights for ONNX graphs: what an exported model reads for each token it writes.

Both forms round a text's activations by its own scales, so a text's results never depend on its batch. (The usual
dynamic quantization has one activation scale for a whole tensor, and so for all texts in it.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 128  # ours: at t5-base shape 13 % faster than blocks of 32 for one token, with a quarter more rounding error
MANY_ROWS = 512  # ours: tables of token embeddings have more rows, those of relative positions fewer
EIGHT_BITS, SEVEN_BITS = 127, 63  # the largest integer of each, with a sign
SMALLEST = 1e-12  # ours: a scale's lower bound, for rows of zeros
CONTRIB = "com.microsoft"  # the operator set of ONNX Runtime's own operators

Nodes = list[Any]


def by_token(model: Any) -> None:
    """Integer products: weights of seven bits with a scale per output, activations of eight with a scale per token.

    The fastest form for many tokens at once. Processors without VNNI add two products in 16 bits; with seven-bit
    weights no such sum overflows (2 · 255 · 63 < 2^15), so a decision does not depend on the processor.

    Args:
        model: an `onnx.ModelProto`, changed in place.
    """
    editor = _Editor(model)
    seen: set[str] = set()

    def product(node: Any, weight: NDArray[np.float32]) -> Nodes:
        text, name, out = node.input[0], node.input[1], node.output[0]
        rounded, scale = _rounded(weight, axis=0, largest=SEVEN_BITS)
        integers, scales = editor.constant(f"{name}_int8", rounded), editor.constant(f"{name}_scales", scale[0])
        zeros = editor.constant(f"{name}_zeros", np.zeros(weight.shape[1], np.int8))
        one, middle = editor.constant("one", np.float32(1)), editor.constant("middle", np.uint8(128))
        smallest = editor.constant("smallest", np.float32(SMALLEST))
        nodes = []
        if text not in seen:  # queries, keys and values read the same activations
            seen.add(text)
            nodes = [
                editor.node("Abs", [text], f"{text}_abs"),
                editor.node("ReduceMax", [f"{text}_abs", editor.constant("last", np.array([-1]))], f"{text}_max"),
                editor.node("Mul", [f"{text}_max", editor.constant("step", np.float32(1 / 127))], f"{text}_step"),
                editor.node("Max", [f"{text}_step", smallest], f"{text}_scale"),
                editor.node("Div", [text, f"{text}_scale"], f"{text}_scaled"),
                editor.node("QuantizeLinear", [f"{text}_scaled", one, middle], f"{text}_uint8"),
            ]
        factors = [f"{text}_uint8", integers, one, scales, middle, zeros]
        return [
            *nodes,
            editor.node("MatMulIntegerToFloat", factors, f"{out}_unscaled", domain=CONTRIB),
            editor.node("Mul", [f"{out}_unscaled", f"{text}_scale"], out),
        ]

    editor.replace_products(product)
    editor.replace_embeddings()


def by_block(model: Any) -> None:
    """Weights in 8 bits with a scale for every 128 inputs of an output; activations are rounded by the same blocks.

    The fastest form for one token at a time, and the more accurate one: an outlier spoils its own block only.

    Args:
        model: an `onnx.ModelProto`, changed in place.
    """
    editor = _Editor(model)

    def product(node: Any, weight: NDArray[np.float32]) -> Nodes:
        inputs, outputs = weight.shape
        blocks = -(-inputs // BLOCK)
        padded = np.zeros((outputs, blocks * BLOCK), np.float32)
        padded[:, :inputs] = weight.T
        padded = padded.reshape(outputs, blocks, BLOCK)
        rounded, scale = _rounded(padded, axis=-1)
        names = [
            node.input[0],
            editor.constant(f"{node.input[1]}_uint8", (rounded.astype(np.int16) + 128).astype(np.uint8)),
            editor.constant(f"{node.input[1]}_scales", scale[..., 0]),
        ]
        # Accuracy level 4 is arithmetic in int8; without it weights are widened first, thirty times slower.
        settings = {"K": inputs, "N": outputs, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        return [editor.node("MatMulNBits", names, node.output[0], domain=CONTRIB, **settings)]

    editor.replace_products(product)
    editor.replace_embeddings()


def _rounded(
    values: NDArray[np.float32], axis: int, largest: int = EIGHT_BITS
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers up to `largest` and, along an axis, the scale they were divided by (that axis has size 1)."""
    scale = np.maximum(np.abs(values).max(axis, keepdims=True), SMALLEST) / largest
    return np.round(values / scale).astype(np.int8), scale.astype(np.float32)


class _Editor:
    """Replaces nodes that read constant float32 matrices, and drops the constants that no node reads any more."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._onnx, self._graph = onnx, model.graph
        self._constants = {constant.name: constant for constant in self._graph.initializer}
        if CONTRIB not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))

    def node(self, op: str, inputs: list[str], output: str, **settings: Any) -> Any:
        return self._onnx.helper.make_node(op, inputs, [output], **settings)

    def constant(self, name: str, value: Any) -> str:
        """The name of a constant, which is added if it does not exist."""
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def replace_products(self, make: Callable[[Any, NDArray[np.float32]], Nodes]) -> None:
        """Replace every product of activations with a constant matrix (inputs, outputs)."""
        self._replace("MatMul", 1, lambda weight: True, make)

    def replace_embeddings(self) -> None:
        """Keep tables of token embeddings (tokens, width) in int8 with a scale per token."""

        def lookup(node: Any, table: NDArray[np.float32]) -> Nodes:
            (name, ids), out = node.input, node.output[0]
            rounded, scale = _rounded(table, axis=1)
            integers, scales = self.constant(f"{name}_rows_int8", rounded), self.constant(f"{name}_row_scales", scale)
            return [
                self.node("Gather", [integers, ids], f"{out}_int8"),
                self.node("Cast", [f"{out}_int8"], f"{out}_float", to=self._onnx.TensorProto.FLOAT),
                self.node("Gather", [scales, ids], f"{out}_scale"),
                self.node("Mul", [f"{out}_float", f"{out}_scale"], out),
            ]

        self._replace("Gather", 0, lambda table: len(table) > MANY_ROWS, lookup)

    def _replace(
        self,
        op: str,
        place: int,
        wanted: Callable[[NDArray[np.float32]], bool],
        make: Callable[[Any, NDArray[np.float32]], Nodes],
    ) -> None:
        nodes: Nodes = []
        for node in self._graph.node:
            matrix = self._matrix(node.input[place]) if node.op_type == op else None
            nodes += make(node, matrix) if matrix is not None and wanted(matrix) else [node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        del self._graph.initializer[:]
        self._graph.initializer.extend(self._constants[name] for name in self._constants if name in read)

    def _matrix(self, name: str) -> NDArray[np.float32] | None:
        """The constant of that name if it is a float32 matrix."""
        constant = self._constants.get(name)
        if constant is None or len(constant.dims) != 2 or constant.data_type != self._onnx.TensorProto.FLOAT:
            return None
        matrix: NDArray[np.float32] = self._onnx.numpy_helper.to_array(constant)
        return matrix
