"""The client against a server that others wrote: `transformers serve` with a tiny random decoder from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from narrowing import present
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers_server import transformers_serve

from reason2decide.llm.client.calls import Call, DecisionCall, Failure, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint, EndpointError
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.settings import Limits

# Each message between its role and an end token; the prompt ends where the assistant is to speak.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_decoder(folder: Path) -> None:
    """A random Llama of two layers over bytes, with the words that label decisions as tokens of their own."""
    vocabulary = ["<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["Yes", "No"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast) + 8,  # the server adds two tokens that mark where a decision is read
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The base URL and the model's name."""
    folder = tmp_path_factory.mktemp("decoder")
    save_decoder(folder)
    with transformers_serve([str(folder)], folder) as url:
        yield f"{url}/v1", str(folder)


@pytest.fixture
def log(tmp_path):
    with CallLog(tmp_path / "calls.sqlite") as log:
        yield log


LIMITS = Limits(concurrency=2, read_timeout=20, deadline=40)


def test_chat(served, log):
    base_url, model = served
    client = Client(Endpoint(base_url, model), log, LIMITS)
    settings = {"max_tokens": 12, "temperature": 0.0}
    calls = [Call(note, [{"role": "user", "content": note}], settings=settings) for note in ("fever", "cough", "rash")]
    found = {call.id: answer for call, answer in client.run(calls)}
    for answer in found.values():
        assert isinstance(answer, ModelAnswer) and answer.finish_reason == "length"
        # The prompt has a token for each byte but the two of the end token: "user: fever</s>assistant: ".
        assert answer.usage.output_tokens == 12 and answer.usage.input_tokens >= len("user: rash") + 1
    again = {call.id: answer for call, answer in client.run(calls)}
    for i, answer in again.items():
        assert isinstance(answer, ModelAnswer) and answer.cached and answer.text == found[i].text


def test_a_model_that_cannot_write_objects_fails_with_what_it_wrote(served, log):
    class Decision(BaseModel):
        label: str

    base_url, model = served
    client = Client(Endpoint(base_url, model), log, LIMITS)
    call = Call("a", [{"role": "user", "content": "fever"}], Decision, {"max_tokens": 8, "temperature": 0.0})
    [(_, failure)] = client.run([call])
    assert isinstance(failure, Failure), failure
    assert failure.kind in ("cut_off", "invalid_answer") and failure.text is not None


def test_system_one(served, log):
    base_url, model = served
    client = Client(Endpoint(base_url, model, dialect="systemone"), log, LIMITS)
    questions = {
        "where": Question("choice", "Where to?", {"home": "self-care", "clinic": None, "hospital": None}),
        "urgency": Question("score", "How urgent is it?", {"low": None, "middle": "soon", "high": None}),
        "fever": Question("yes_no", "Is there fever?"),
    }
    [(_, answer)] = client.run([DecisionCall("a", "fever since Monday", questions)])
    assert isinstance(answer, ModelAnswer), answer
    answers = [present(p) for p in present(answer.probabilities).values()]
    assert [list(p) for p in answers] == [
        ["home", "clinic", "hospital"],
        ["low", "middle", "high"],
        ["yes", "no"],
    ]
    for p in answers:
        assert sum(p.values()) == pytest.approx(1) and all(0 < share < 1 for share in p.values())
    assert answer.usage.input_tokens > 0
    # The server's own rule: it answers to a question without options with 422, which is no reason to try again.
    [(_, failure)] = client.run([DecisionCall("b", "fever", {"q": Question("choice", "?", {})})])
    assert isinstance(failure, Failure), failure
    assert (failure.kind, failure.attempts) == ("http_422", 1)


def test_decisions_are_not_served_there(served, log):
    base_url, model = served
    client = Client(Endpoint(base_url, model, dialect="decisions"), log, LIMITS)
    with pytest.raises(EndpointError, match="HTTP 404"):
        list(client.run([DecisionCall("a", "fever", {"q": Question("yes_no", "Fever?")})]))
