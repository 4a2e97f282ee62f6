"""Label scoring against brute force: each candidate scored alone, one whole forward each."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, DECODER_ONLY, MORE_ENCODER_DECODERS, build
from transformers import T5Config, T5ForConditionalGeneration

import reason2decide.model.label_scores as labels_module
from reason2decide.model.calibration import label_distribution
from reason2decide.model.engines.torch import TorchEngine
from reason2decide.model.prompt_encoder import Lengths, PromptEncoder, TokenPrompt
from reason2decide.training.pretrained import complete_tokenizer, start_token
from reason2decide.training.prompt_form import prompt_form

LABEL_SETS: list[list[str]] = [
    ["yes", "no", "maybe"],
    ["no", "no significant difference", "no significant"],  # prefixes of one another
    ["see a doctor within 24 hours", "see a doctor within 3 days", "call an ambulance", "home care", "see a doctor"],
    [f"label {i} of {'many ' * (i % 4)}" for i in range(200)],
]
TEXTS = ["Pt is 34 yo c/o chest pain x 3 d, denies SOB.", "Fever.", "no rash " * 30, "cough since 2 days; home"]


@pytest.fixture(scope="module", params=(*ARCHITECTURES, *MORE_ENCODER_DECODERS, *DECODER_ONLY))
def loaded(request: pytest.FixtureRequest) -> tuple[TorchEngine, PromptEncoder]:
    model, tokenizer = build(request.param)
    complete_tokenizer(tokenizer, request.param, has_encoder=model.config.is_encoder_decoder)
    if model.config.is_encoder_decoder:
        model.config.decoder_start_token_id = start_token(model, tokenizer, request.param)
    return TorchEngine(model, tokenizer), PromptEncoder(
        tokenizer, Lengths(), prompt_form(model, tokenizer, request.param)
    )


def brute_force(model: Any, prompt: TokenPrompt, target: tuple[int, ...]) -> float:
    """log P(target | prompt) by one teacher-forced forward of the whole target, without cache or padding."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            read = [model.config.decoder_start_token_id, *prompt.lead, *target[:-1]]
            output = model(input_ids=torch.tensor([prompt.text]), decoder_input_ids=torch.tensor([read]))
        else:
            output = model(input_ids=torch.tensor([[*prompt.text, *prompt.lead, *target[:-1]]]))
    logits = output.logits[0, -len(target) :]
    return float(logits.double().log_softmax(-1)[range(len(target)), list(target)].sum())


def test_scores_equal_brute_force(loaded: tuple[TorchEngine, PromptEncoder]) -> None:
    """One batch whose texts differ in length and whose records differ in their candidates."""
    engine, encoder = loaded
    prompts = [encoder.decide(ids) for ids in encoder.text_ids(TEXTS)]
    candidates = [encoder.candidates(choices) for choices in LABEL_SETS]
    scores = engine.score_labels(prompts, candidates)
    # Of hundreds of labels a model of real size is asked for every eighth: each takes a forward of its own.
    every = 8 if engine.model.num_parameters() > 10_000_000 else 1
    for prompt, labels, scored in zip(prompts, candidates, scores, strict=True):
        step = every if len(labels) > 20 else 1
        expected, found = [brute_force(engine.model, prompt, label) for label in labels[::step]], scored[::step]
        # Relative, since the totals of long labels reach -100; probabilities then agree to 1e-5.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(label_distribution(found), label_distribution(np.array(expected)), atol=1e-5)


def test_scores_do_not_depend_on_the_batch_or_on_chunks(
    loaded: tuple[TorchEngine, PromptEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, encoder = loaded
    prompts = [encoder.decide(ids) for ids in encoder.text_ids(TEXTS)]
    candidates = [encoder.candidates(LABEL_SETS[2])] * len(prompts)
    together = engine.score_labels(prompts, candidates)
    monkeypatch.setattr(labels_module, "BYTES_PER_FORWARD", 1)
    for index in reversed(range(len(prompts))):
        alone = engine.score_labels([prompts[index]], [candidates[index]])[0]
        np.testing.assert_allclose(alone, together[index], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(3, 8), min_size=0, max_size=4).map(tuple), min_size=2, max_size=12, unique=True))
def test_any_trie_of_candidates(contents: list[tuple[int, ...]]) -> None:
    """Candidates over six tokens share prefixes in every way; one may be the end token alone."""
    engine = _shared_engine()
    candidates = [(*content, 1) for content in contents]
    found = engine.score_labels([TokenPrompt([5, 6, 7, 1])], [candidates])[0]
    expected = [brute_force(engine.model, TokenPrompt([5, 6, 7, 1]), candidate) for candidate in candidates]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_exhaustive_candidates_have_total_probability_one() -> None:
    """Over a vocabulary of 12, the end token alone and all pairs that begin otherwise are everything there is."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=12, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    engine = TorchEngine(T5ForConditionalGeneration(config), build("t5")[1])
    everything = [(1,), *((first, second) for first in range(12) if first != 1 for second in range(12))]
    assert np.exp(engine.score_labels([TokenPrompt([5, 6, 1])], [everything])[0]).sum() == pytest.approx(1, abs=1e-5)


def test_distribution_by_hand() -> None:
    """Scores log 1, log 3: probabilities 1/4 and 3/4; a common offset, however large, changes nothing."""
    scores = np.log([1.0, 3.0])
    np.testing.assert_allclose(label_distribution(scores), [0.25, 0.75])
    np.testing.assert_allclose(label_distribution(scores - 5000), [0.25, 0.75])


_BACKENDS: list[TorchEngine] = []


def _shared_engine() -> TorchEngine:
    if not _BACKENDS:
        _BACKENDS.append(TorchEngine(*build("t5")))
    return _BACKENDS[0]


def test_memory_does_not_grow_with_the_number_of_labels() -> None:
    """The copied caches of one forward stay within the bound: 200 labels are read in as many parts as it takes."""
    engine = _shared_engine()
    rows: list[int] = []
    original = engine.model.forward

    def watch(*arguments: Any, **settings: Any) -> Any:
        rows.append(len(settings["decoder_input_ids"]))
        return original(*arguments, **settings)

    engine.model.forward = watch
    candidates = [(first, second, 1) for first in range(3, 17) for second in range(3, 17)]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(labels_module, "BYTES_PER_FORWARD", 2**20)
            found = engine.score_labels([TokenPrompt([5, 6, 7, 1])], [candidates])[0]
    finally:
        engine.model.forward = original
    assert max(rows) <= 2**20 // (4 * engine.model.config.vocab_size)
    np.testing.assert_allclose(found, engine.score_labels([TokenPrompt([5, 6, 7, 1])], [candidates])[0], rtol=1e-5)


def test_what_a_batch_holds_goes_with_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder states and caches are too large to wait for the garbage collector."""
    engine = _shared_engine()
    held: list[Any] = []

    extend = engine.architecture.extend

    def remember(*arguments: Any) -> Any:
        logits, reading = extend(*arguments)
        held.extend(map(weakref.ref, reading.tensors))
        return logits, reading

    monkeypatch.setattr(engine.architecture, "extend", remember)
    gc.disable()
    try:
        engine.score_labels([TokenPrompt([3, 4, 1])], [[(3, 4, 1), (3, 5, 1), (4, 1)]])
        assert len(held) > 2 and not [tensor for tensor in held if tensor() is not None]
    finally:
        gc.enable()


def test_a_bases_own_generation_settings_are_left_out() -> None:
    """BART's forced end token would replace the last word of a rationale at the length limit."""
    model, tokenizer = build("bart")
    free = TorchEngine(*build("bart")).generate([TokenPrompt([5, 6, 7])], 4)
    model.generation_config.forced_eos_token_id = tokenizer.eos_token_id
    assert TorchEngine(model, tokenizer).generate([TokenPrompt([5, 6, 7])], 4) == free and len(free[0]) == 4
