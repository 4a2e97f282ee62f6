"""A model of transformers as two ONNX graphs, which `model/engines/onnx.py` runs without torch.

    encoder.onnx   token ids of one text -> the keys and values that each decoder layer attends to ("cross")
    decoder.onnx   next tokens, what was read before ("past"), cross -> log-probabilities, past and these ("present")
    engine.json    what the engine must know besides (`model/engines/onnx.py`, `EngineFile`)

The decoder has a separate batch axis for cross: the rows of a text, one after another, share its keys and values
without copies. The library's own layers are traced; only their attention function is replaced, so no architecture needs
its own code. torch is needed here only.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, EncoderDecoderCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from reason2decide.errors import BaseModelError, UserError, require
from reason2decide.export import decoder_only
from reason2decide.export.caches import GrownLayer, flat
from reason2decide.export.quantization import by_block, by_token
from reason2decide.export.shapes import simplify_shapes
from reason2decide.model.architectures.thin_decoder import ThinDecoderConfig
from reason2decide.model.engines.onnx import ENGINE_FILE, ENGINE_FORMAT, HIDDEN, EngineFile
from reason2decide.model.prompt_encoder import special_ids
from reason2decide.model.reading import positions_of

ATTENTION = "reason2decide_export"  # the name our attention function has in transformers
OPSET = 18  # the first whose ReduceMax takes its axes as an input; ONNX Runtime 1.15 and later read it
ONE_FILE = 2**31 - 2**20  # a protobuf file ends at 2 GB; beyond, weights go to a file next to the graph
SUPPORTED = ("t5", "mt5", "umt5", "bart", ThinDecoderConfig.model_type)
DECODER_ONLY = ("llama", "qwen2", "qwen3", "smollm3", "mistral", "phi3", "gemma3_text")

Transform = Callable[[Any], None]


@dataclass(frozen=True)
class _Sizes:
    """Sizes of example inputs. Rows are a multiple of texts."""

    rows: int
    texts: int
    tokens: int
    past: int
    length: int


# For tracing and for a second run, all different (`shapes.py`), so that a size traced as a constant shows.
SIZES = (_Sizes(rows=15, texts=3, tokens=7, past=11, length=13), _Sizes(rows=14, texts=2, tokens=5, past=17, length=19))


@dataclass(frozen=True)
class Weights:
    """How the weights of both graphs are kept; None leaves float32."""

    summary: str
    encoder: Transform | None
    decoder: Transform | None


# From the smallest to the exact one, so that the next better type is the next entry. Every one is batch-independent.
WEIGHTS = {
    "int8": Weights("int8 encoder (scales per token), 8-bit decoder (scales per block)", by_token, by_block),
    "int8-blocks": Weights("8-bit encoder and decoder (scales per block)", by_block, by_block),
    "int8-decoder": Weights("float32 encoder, 8-bit decoder (scales per block)", None, by_block),
    "float32": Weights("float32, exact", None, None),
}


def export_graphs(model: Any, tokenizer: Any, folder: Path, weights: str) -> None:
    """Write the ONNX graphs of a model and `engine.json` into an existing folder.

    Args:
        model: one of `SUPPORTED` or `DECODER_ONLY` or an encoder-decoder of two BERTs, in float32; it is left as it
            was.
        tokenizer: its tokenizer, for the special tokens.
        folder: where the files are written.
        weights: a key of `WEIGHTS`.

    Raises:
        UserError: `weights` is not one of them.
        BaseModelError: another architecture, which only the torch engine runs.
        MissingExtraError: the package onnx is not installed.
    """
    if weights not in WEIGHTS:
        raise UserError(f"there is no weight type {weights!r}; give one of: {', '.join(WEIGHTS)}")
    _require_supported(model.config)
    require("onnx", "export")
    with _tracing(model), torch.no_grad(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        encoder, decoder = _graphs(model)
        cross = encoder(torch.ones(1, 1, dtype=torch.long))
        _, heads, _, width = cross[0].shape
        names = [f"{what}_{layer}" for layer in range(len(cross) // 2) for what in ("keys", "values")]
        outputs = [f"cross_{name}" for name in names]
        inputs = [_encoder_inputs(sizes) for sizes in SIZES]
        _export(encoder, inputs, outputs, Path(scratch), folder / "encoder.onnx", WEIGHTS[weights].encoder)
        outputs = ["log_probs", *(f"present_{name}" for name in names)]
        inputs = [_decoder_inputs(sizes, names, heads, width) for sizes in SIZES]
        _export(decoder, inputs, outputs, Path(scratch), folder / "decoder.onnx", WEIGHTS[weights].decoder)
    engine = EngineFile(
        format=ENGINE_FORMAT,
        weights=weights,
        architecture=model.config.model_type,
        start=model.config.decoder_start_token_id if model.config.is_encoder_decoder else None,
        end=tokenizer.eos_token_id,
        special=sorted(special_ids(tokenizer)),
        vocabulary=model.get_output_embeddings().out_features,
        layers=len(cross) // 2,
        heads=heads,
        width=width,
        positions=positions_of(model.config),
        encoder="encoder.onnx",
        decoder="decoder.onnx",
    )
    (folder / ENGINE_FILE).write_text(json.dumps(asdict(engine), indent=2), "utf-8")


def _graphs(model: Any) -> tuple[nn.Module, nn.Module]:
    if model.config.is_encoder_decoder:
        return _EncoderGraph(model), _DecoderGraph(model)
    return decoder_only.TextGraph(model), decoder_only.AnswerGraph(model)


def _require_supported(config: Any) -> None:
    kind = config.model_type
    if kind in DECODER_ONLY:
        return
    if kind == "encoder-decoder":
        halves = (config.encoder.model_type, config.decoder.model_type)
        if halves == ("bert", "bert"):
            return
        kind = f"{kind} of {' and '.join(halves)}"
    if kind == ThinDecoderConfig.model_type and config.encoder.model_type != "modernbert":
        kind = f"{config.encoder.model_type} with a thin decoder"
    if kind not in SUPPORTED:
        raise BaseModelError(
            f"a model of type {kind} cannot be exported to ONNX; T5, mT5, UMT5, BART, an encoder-decoder of two BERTs, "
            f"ModernBERT with a thin decoder, and of those without an encoder {', '.join(DECODER_ONLY)} can. The torch "
            "engine runs it as it is"
        )


@contextmanager
def _tracing(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode with our attention function; restore it afterwards."""
    AttentionInterface.register(ATTENTION, _attention)
    training, before = model.training, model.config._attn_implementation
    model.eval()
    model.set_attn_implementation(ATTENTION if model.config.is_encoder_decoder else decoder_only.ATTENTION)
    try:
        with warnings.catch_warnings():
            # Tracing warns about each Python branch on a size; only the one in `_attention` depends on it.
            warnings.simplefilter("ignore")
            yield
    finally:
        model.train(training).set_attn_implementation(before)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention in which the rows of a text may share its keys and values.

    Args:
        module: the layer, unused.
        query: (rows, heads, tokens, width).
        key, value: (rows, heads, length, width), or (texts, ...) where rows are texts x rows of each.
        attention_mask, position_bias: what is added to the scores.
        scaling: of the scores; width^-0.5 if None, as in the library.
        sliding_window: distance from which on a token of the encoder is not seen, on either side; None: all are.

    Returns:
        (rows, tokens, heads, width) or (texts, tokens of all rows, heads, width), and no attention weights.
    """
    _, heads, _, width = query.shape
    if query.shape[0] != key.shape[0]:  # decided once, while tracing: true for the decoder's cross-attention
        query = query.transpose(1, 2).reshape(key.shape[0], -1, heads, width).transpose(1, 2)
        position_bias = None  # T5 has zeros there
    scaling = width**-0.5 if scaling is None else scaling
    scores = (query if scaling == 1 else query * scaling) @ key.transpose(2, 3)
    window = None  # of ModernBERT's local layers: the library masks them itself only for attention that it knows
    if sliding_window is not None:
        places = torch.arange(key.shape[2])
        window = ((places[:, None] - places[None, :]).abs() >= sliding_window) * HIDDEN
    biases = [bias for bias in (position_bias, attention_mask, window) if bias is not None]
    if biases:
        scores = scores + sum(biases[1:], start=biases[0])  # the sum of the biases is the same in all layers
    return (scores.softmax(-1) @ value).transpose(1, 2), None


class _EncoderGraph(nn.Module):
    """Token ids (1, length) to the keys and values of all decoder layers, each (1, heads, length, width).

    The decoder is called on one token for its keys and values of the text; the rest of its computation is not in the
    graph, as no output needs it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        states = self.model.get_encoder()(input_ids=input_ids).last_hidden_state
        cross = Cache(layer_class_to_replicate=GrownLayer)
        self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=input_ids[:, :1],
            past_key_values=EncoderDecoderCache(Cache(layer_class_to_replicate=GrownLayer), cross),
            use_cache=True,
        )
        return flat(cross)


class _DecoderGraph(nn.Module):
    """Next tokens (rows, tokens) to log-probabilities (rows, tokens, vocabulary) and the grown past.

    `hidden` (texts, length) is 1 where a text is padded. `caches` are keys and values layer by layer, first the past
    ones (rows, heads, past, width), then those of the texts (texts, heads, length, width).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, hidden: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        layers = [GrownLayer(keys, values) for keys, values in zip(caches[::2], caches[1::2], strict=True)]
        attention, cross = Cache(layers=layers[: len(layers) // 2]), Cache(layers=layers[len(layers) // 2 :])
        past, tokens = caches[0].shape[2], input_ids.shape[1]
        width = self.model.get_encoder().config.hidden_size
        later = torch.arange(past + tokens)[None, :] > torch.arange(tokens)[:, None] + past
        logits = self.model(
            # The encoder states need only exist here: their keys and values are in the cache.
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.zeros(1, 1, width)),
            attention_mask=(hidden * HIDDEN)[:, None, None, :],
            decoder_input_ids=input_ids,
            decoder_attention_mask=(later * HIDDEN)[None, None],
            past_key_values=EncoderDecoderCache(attention, cross),
            use_cache=True,
        ).logits
        return (logits.log_softmax(-1), *flat(attention))


def _encoder_inputs(sizes: _Sizes) -> dict[str, Tensor]:
    return {"input_ids": torch.ones(1, sizes.length, dtype=torch.long)}


def _decoder_inputs(sizes: _Sizes, names: list[str], heads: int, width: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.ones(sizes.rows, sizes.tokens, dtype=torch.long),
        "hidden": torch.zeros(sizes.texts, sizes.length),
        **{f"past_{name}": torch.zeros(sizes.rows, heads, sizes.past, width) for name in names},
        **{f"cross_{name}": torch.zeros(sizes.texts, heads, sizes.length, width) for name in names},
    }


def _export(
    module: nn.Module,
    inputs: Sequence[dict[str, Tensor]],
    outputs: list[str],
    scratch: Path,
    out: Path,
    transform: Transform | None,
) -> None:
    """Trace a module on the first inputs and write its graph, in one file if possible."""
    import onnx

    traced = scratch / out.stem / out.name
    traced.parent.mkdir()
    torch.onnx.export(
        module,
        tuple(inputs[0].values()),
        traced,
        dynamo=False,
        opset_version=OPSET,
        input_names=list(inputs[0]),
        output_names=outputs,
        dynamic_axes={name: _axes(name) for name in (*inputs[0], *outputs)},
    )
    graph = onnx.load(traced)
    simplify_shapes(graph, traced, [{name: value.numpy() for name, value in run.items()} for run in inputs])
    if transform is not None:
        transform(graph)
    large = sum(len(constant.raw_data) for constant in graph.graph.initializer) > ONE_FILE
    onnx.save(graph, out, save_as_external_data=large, location=f"{out.name}.data")


def _axes(name: str) -> dict[int, str]:
    """The names of an input's or output's axes whose sizes vary."""
    kind = name.split("_")[0]
    return {
        "input": {0: "rows", 1: "tokens"},
        "log": {0: "rows", 1: "tokens"},
        "hidden": {0: "texts", 1: "length"},
        "cross": {0: "texts", 2: "length"},
        "past": {0: "rows", 2: "past"},
        "present": {0: "rows", 2: "present"},
    }[kind]
