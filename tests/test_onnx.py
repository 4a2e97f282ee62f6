"""The ONNX engine against the torch engine and transformers' own generation, for every architecture."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import ARCHITECTURES, bart_tokenizer, build
from transformers import GenerationConfig, MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

import reason2decide.export.graphs as export_module
import reason2decide.model.engines.onnx as engine_module
from reason2decide.errors import BaseModelError, BundleError, UserError
from reason2decide.export.graphs import WEIGHTS, export_graphs
from reason2decide.model.calibration import label_distribution
from reason2decide.model.engines.onnx import OnnxEngine
from reason2decide.model.engines.torch import TorchEngine
from reason2decide.model.prompt_encoder import Lengths, PromptEncoder, TokenPrompt
from reason2decide.training.pretrained import complete_tokenizer
from reason2decide.training.prompt_form import prompt_form

LABEL_SETS: list[list[str]] = [
    ["yes", "no", "maybe"],
    ["no", "no significant difference", "no significant"],  # prefixes of one another
    ["see a doctor within 24 hours", "see a doctor within 3 days", "call an ambulance", "home care", "see a doctor"],
    [f"label {i} of {'many ' * (i % 4)}" for i in range(300)],
]
TEXTS = ["Pt is 34 yo c/o chest pain x 3 d, denies SOB.", "Fever.", "no rash " * 30, "cough since 2 days; home"]
# With sliding windows, shared keys, no encoder.
DECODERS = ("qwen2", "qwen3", "gemma3", "llama", "mistral", "phi3", "smollm3")
QUANTIZED = [weights for weights in WEIGHTS if weights != "float32"]
Engines = tuple[OnnxEngine, TorchEngine, PromptEncoder]
Load = Callable[[str, str], Engines]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Both engines of an architecture, by weights, each built and exported once."""

    @cache
    def reference(architecture: str) -> tuple[TorchEngine, PromptEncoder]:
        model, tokenizer = build(architecture)
        model.generation_config = GenerationConfig()  # BART's forces the end token on the last place
        complete_tokenizer(tokenizer, architecture, has_encoder=model.config.is_encoder_decoder)
        form = prompt_form(model, tokenizer, architecture)
        return TorchEngine(model, tokenizer), PromptEncoder(tokenizer, Lengths(), form)

    @cache
    def engines(architecture: str, weights: str) -> Engines:
        torch_engine, encoder = reference(architecture)
        folder = tmp_path_factory.mktemp(f"{architecture}-{weights}")
        export_graphs(torch_engine.model, encoder.tokenizer, folder, weights)
        return OnnxEngine(folder), torch_engine, encoder

    return engines


@pytest.fixture(params=(*ARCHITECTURES, "umt5", "modernbert", *DECODERS))
def exact(request: pytest.FixtureRequest, load: Load) -> Engines:
    return load(request.param, "float32")


# The encoder-decoder of two BERTs is of real size: one of its quantized forms is enough.
@pytest.fixture(
    params=[(a, w) for a in ARCHITECTURES[:-1] for w in QUANTIZED] + [(ARCHITECTURES[-1], "int8"), ("qwen3", "int8")]
)
def quantized(request: pytest.FixtureRequest, load: Load) -> Engines:
    return load(*request.param)


def prompts_of(encoder: PromptEncoder) -> list[TokenPrompt]:
    return [encoder.decide(ids) for ids in encoder.text_ids(TEXTS)]


def test_scores_equal_the_torch_engine(exact: Engines) -> None:
    """Texts of several lengths, label sets with prefixes of one another, one of 300 labels."""
    onnx_engine, torch_engine, encoder = exact
    prompts, candidates = prompts_of(encoder), [encoder.candidates(choices) for choices in LABEL_SETS]
    found = onnx_engine.score_labels(prompts, candidates)
    for own, expected in zip(found, torch_engine.score_labels(prompts, candidates), strict=True):
        assert own.dtype == np.float64
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(label_distribution(own), label_distribution(expected), atol=1e-5)


def test_what_is_written_equals_transformers(exact: Engines) -> None:
    onnx_engine, torch_engine, encoder = exact
    prompts = prompts_of(encoder)
    greedy = onnx_engine.generate(prompts, 20)
    assert greedy == torch_engine.generate(prompts, 20)
    assert [list(onnx_engine.stream(prompt, 20)) for prompt in prompts] == greedy


def test_texts_that_end_at_different_times(tmp_path: Path) -> None:
    """With a vocabulary of 14 texts end here and there, and rows leave the batch."""
    torch.manual_seed(1)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=14, **shape, decoder_start_token_id=0, pad_token_id=1, eos_token_id=2)
    tokenizer = bart_tokenizer()  # its special tokens are 0 to 3
    model = T5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "layer_norm" not in name and "shared" not in name:
            weight.data *= 3  # texts differ more in what follows
    torch_engine = TorchEngine(model, tokenizer)
    export_graphs(model, tokenizer, tmp_path, "float32")
    engine = OnnxEngine(tmp_path)
    random = np.random.default_rng(0)
    prompts = [TokenPrompt([*random.integers(4, 14, random.integers(2, 12)).tolist(), 2]) for _ in range(40)]
    greedy = engine.generate(prompts, 12)
    assert greedy == torch_engine.generate(prompts, 12)
    assert len({len(tokens) for tokens in greedy}) > 3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_other_text_changes_a_bit_of_a_score(load: Load, weights: str) -> None:
    engine, _, encoder = load("t5-v1.1", weights)
    prompts, candidates = prompts_of(encoder), [encoder.candidates(choices) for choices in LABEL_SETS]
    together = engine.score_labels(prompts, candidates)
    for index in reversed(range(len(prompts))):
        alone = engine.score_labels([prompts[index]], [candidates[index]])[0]
        np.testing.assert_array_equal(alone, together[index])


def test_quantized_scores_are_near(quantized: Engines) -> None:
    """Loose: random weights say little about the parity of trained ones, which an export measures.

    A scale or a matrix in the wrong place leaves the order of 60 labels to chance (a rank correlation of 0 ± 0.13).
    """
    engine, torch_engine, encoder = quantized
    prompts, candidates = prompts_of(encoder)[:1], [encoder.candidates(LABEL_SETS[3][:60])]
    found, expected = (engine.score_labels(prompts, candidates)[0] for engine in (engine, torch_engine))
    np.testing.assert_array_equal(engine.score_labels(prompts_of(encoder)[:2], candidates * 2)[0], found)
    assert np.corrcoef(found.argsort().argsort(), expected.argsort().argsort())[0, 1] > 0.97
    assert list(engine.stream(prompts[0], 8)) == engine.generate(prompts, 8)[0]


def test_quantized_products_by_hand() -> None:
    """One product per form: the error of so few bits, not more, for inputs that fill no block and rows of zeros.

    It is the same on processors that add products in 16 bits, and on those that do not.
    """
    import onnxruntime

    random = np.random.default_rng(0)
    weight = random.standard_normal((200, 30)).astype(np.float32)
    inputs = random.standard_normal((5, 3, 200)).astype(np.float32)
    inputs[2] = 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["a", "b", 200])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["a", "b", 30])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    expected = inputs @ weight
    for transform in (WEIGHTS["int8"].encoder, WEIGHTS["int8"].decoder):
        assert transform is not None
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        transform(model)
        assert {node.op_type for node in model.graph.node}.isdisjoint({"MatMul"})
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": inputs})[0]
        assert np.abs(found - expected).std() < 0.012 * expected.std()
        np.testing.assert_array_equal(found[2], 0)


def test_a_text_is_encoded_once_and_memory_is_bounded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 labels: one pass of the encoder, and no forward of several rows above the bound."""
    engine, _, encoder = load("t5", "float32")
    prompts, candidates = prompts_of(encoder)[:1], [encoder.candidates(LABEL_SETS[3])]
    expected = engine.score_labels(prompts, candidates)[0]
    encoded: list[int] = []
    forwards: list[tuple[int, int]] = []
    encode, read = engine._encode, engine._read

    def watch_encode(prompt: Any) -> Any:
        encoded.append(len(prompt))
        return encode(prompt)

    def watch_read(ids: Any, *rest: Any) -> Any:
        log_probs, present = read(ids, *rest)
        forwards.append((len(ids), log_probs.nbytes + sum(value.numpy().nbytes for value in present)))
        return log_probs, present

    monkeypatch.setattr(engine, "_encode", watch_encode)
    monkeypatch.setattr(engine, "_read", watch_read)
    for bound in (2**18, 1):
        forwards.clear()
        monkeypatch.setattr(engine_module, "BYTES_PER_FORWARD", bound)
        np.testing.assert_allclose(engine.score_labels(prompts, candidates)[0], expected, rtol=0, atol=1e-4)
        assert max(rows for rows, _ in forwards) == 1 or max(size for rows, size in forwards if rows > 1) <= bound
        assert (max(rows for rows, _ in forwards) == 1) == (bound == 1)
    assert len(encoded) == 2


def test_what_a_text_holds_goes_with_its_answer(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys and values are too large to wait for the garbage collector."""
    engine, _, encoder = load("t5", "float32")
    held = []
    encode = engine._encode

    def remember(prompt: TokenPrompt) -> Any:
        text = encode(prompt)
        held.append(weakref.ref(text))
        return text

    monkeypatch.setattr(engine, "_encode", remember)
    prompts = prompts_of(encoder)
    gc.disable()
    try:
        engine.score_labels(prompts, [encoder.candidates(choices) for choices in LABEL_SETS])
        engine.generate(prompts, 5)
        list(engine.stream(prompts[0], 5))
        assert len(held) == 2 * len(prompts) + 1
        assert not [text for text in held if text() is not None]
    finally:
        gc.enable()


def test_it_runs_where_torch_and_transformers_cannot_be_imported(load: Load) -> None:
    engine, _, encoder = load("t5", "int8")
    prompts, candidates = prompts_of(encoder), [encoder.candidates(LABEL_SETS[2])] * len(TEXTS)
    program = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from pathlib import Path
from reason2decide.model.engines.onnx import OnnxEngine
from reason2decide.model.prompt_encoder import TokenPrompt
texts, candidates = json.loads(sys.stdin.read())
prompts = [TokenPrompt(text) for text in texts]
engine = OnnxEngine(Path(sys.argv[1]))
scores = engine.score_labels(prompts, [[tuple(ids) for ids in own] for own in candidates])
print(json.dumps([[own.tolist() for own in scores], engine.generate(prompts, 8)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(engine.folder)],
        input=json.dumps([[prompt.text for prompt in prompts], candidates]),
        capture_output=True,
        text=True,
        check=True,
    )
    scores, greedy = json.loads(done.stdout)
    np.testing.assert_array_equal(scores, engine.score_labels(prompts, candidates))
    assert greedy == engine.generate(prompts, 8)


def test_what_is_written(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and JSON, no path of this machine in them; the model is as it was; large weights beside the graph."""
    engine, torch_engine, encoder = load("bart", "float32")
    files = {path.name: path.read_bytes() for path in engine.folder.iterdir()}
    assert set(files) == {"encoder.onnx", "decoder.onnx", "engine.json"}
    assert not any(b"site-packages" in content or b"reason2decide/" in content for content in files.values())
    assert torch_engine.model.config._attn_implementation != export_module.ATTENTION
    assert not torch_engine.model.training
    monkeypatch.setattr(export_module, "ONE_FILE", 0)
    export_graphs(torch_engine.model, encoder.tokenizer, tmp_path, "float32")
    assert {path.name for path in tmp_path.iterdir()} == {*files, "encoder.onnx.data", "decoder.onnx.data"}
    prompts, candidates = prompts_of(encoder), [encoder.candidates(choices) for choices in LABEL_SETS]
    for own, other in zip(
        OnnxEngine(tmp_path).score_labels(prompts, candidates), engine.score_labels(prompts, candidates), strict=True
    ):
        np.testing.assert_array_equal(own, other)


def test_other_architectures_and_weights_are_refused(load: Load, tmp_path: Path) -> None:
    _, torch_engine, encoder = load("t5", "float32")
    with pytest.raises(UserError, match=r"no weight type 'int3'; give one of: int8, .*float32"):
        export_graphs(torch_engine.model, encoder.tokenizer, tmp_path, "int3")
    shape: dict[str, int] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20}
    marian = MarianMTModel(MarianConfig(**shape, pad_token_id=0, decoder_start_token_id=0))
    with pytest.raises(BaseModelError, match=r"type marian cannot be exported to ONNX; .*The torch engine runs it"):
        export_graphs(marian, encoder.tokenizer, tmp_path, "float32")
    assert not any(tmp_path.iterdir())


def test_damaged_exports_are_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not exported for ONNX Runtime: it has no engine\.json"):
        OnnxEngine(tmp_path)
    source = load("t5", "float32")[0].folder
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "decoder.onnx").read_bytes()
    (tmp_path / "decoder.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be loaded"):
        OnnxEngine(tmp_path)
    engine = json.loads((tmp_path / "engine.json").read_text())
    (tmp_path / "engine.json").write_text(json.dumps({**engine, "format": 99}))
    with pytest.raises(BundleError, match="export format 99, this program reads 2"):
        OnnxEngine(tmp_path)
    (tmp_path / "engine.json").write_text("{")
    with pytest.raises(BundleError, match="is not what an export writes"):
        OnnxEngine(tmp_path)
