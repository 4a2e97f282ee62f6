"""Exports as decision models: transformers loads and serves them, with the probabilities of the bundle.

The models are random: what they say is of no matter, only that both say the same.
"""

from __future__ import annotations

import ast
import json
import random
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from forks import Forks
from test_bundle import MANIFEST
from tiny_models import ARCHITECTURES, build
from toy import LABELS
from transformers import (
    AutoModelForDecision,
    AutoProcessor,
    DecisionConfig,
    DecisionPipeline,
    UMT5Config,
    UMT5ForConditionalGeneration,
    pipeline,
)
from transformers.utils.chat_template_utils import _compile_jinja_template
from transformers_server import transformers_serve

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import BundleError, OutputError
from reason2decide.export.transformers import CLASSES, CODE, SOURCE, export_transformers_decision
from reason2decide.files import sha256_file
from reason2decide.model.calibration import Calibration
from reason2decide.model.predictor import Predictor
from reason2decide.serve.texts import state_text
from reason2decide.training.save import save_bundle

CLOSE = 1e-5  # of a probability, to the bundle's

YES_NO = LabelSet(("No", "yes"))
# More than the 26 options that transformers allows without being told, and more than one forward pass takes.
MANY = LabelSet(tuple(f"urgency {level}" for level in range(40)), ordinal=True, urgent="last")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where transformers copies the code that it runs: not into the user's own cache."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers keeps the classes it was allowed to load, by configuration: no test may find another's."""
    monkeypatch.setattr(AutoModelForDecision._model_mapping, "_extra_content", {})


def random_bundle(architecture: str, labels: LabelSet, out: Path) -> Path:
    """A bundle of a random model, so hot that labels of several lengths all keep a share."""
    model, tokenizer = build(architecture)
    log = out.parent / "log.jsonl"
    log.write_text('{"stage": "stage2", "event": "train", "step": 1, "loss": 0.5}\n')
    calibration = replace(Calibration.fit([np.array([1.0, 0.0])], [0]), temperature=4.0)
    manifest = replace(MANIFEST, labels=labels)
    save_bundle(out, manifest, model, tokenizer, calibration, config_toml="seed = 0\n", training_log=log)
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle("t5", LABELS, tmp_path_factory.mktemp("decision") / "bundle")


@pytest.fixture(scope="module")
def exported(bundle: Path, forks: Forks) -> Path:
    out = bundle.parent / "triage"
    ended = forks.run("export", bundle, "--out", out, "--transformers-decision")
    assert ended.returncode == 0, ended.stderr
    assert f"runs the code in {CODE}" in ended.stderr
    return out


@pytest.fixture(scope="module")
def served(exported: Path, modules: Path) -> Iterator[httpx2.Client]:
    """A client of the server that the command in the export's README starts."""
    command = re.search(r"^ {4}transformers serve (.*)$", (exported / "README.md").read_text(), re.MULTILINE)
    assert command is not None
    with (
        transformers_serve(shlex.split(command[1]), exported.parent, HF_MODULES_CACHE=str(modules / "served")) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def choice(*labels: str) -> dict[str, Any]:
    return {"type": "choice", "instructions": "not read", "criteria": dict.fromkeys(labels)}


def renormalised(probabilities: Mapping[str, float], labels: tuple[str, ...]) -> dict[str, float]:
    total = sum(probabilities[label] for label in labels)
    return {label: probabilities[label] / total for label in labels}


TEXTS = (
    "34 yo with high fever since 2 days",
    "  chest   pain \n and </s> an end token\tin the note, 60 yo  ",
    "mild rash " * 60,  # cut
    "é ☃ <|mark",
)


def expected(bundle: Path) -> list[dict[str, float]]:
    return Predictor.load(bundle).distributions([Record(str(i), text) for i, text in enumerate(TEXTS)])


def test_served_over_http(served: httpx2.Client, bundle: Path) -> None:
    for text, own in zip(TEXTS, expected(bundle), strict=True):
        assert min(own.values()) > 0.01, "a distribution with one label would test nothing"
        some = ("call an ambulance", "home care")
        questions = {"all": choice(*LABELS.values), "some": choice(*some)}
        reply = served.post("/v1/systemone", json={"model": "triage", "state": text, "questions": questions})
        assert reply.status_code == 200, reply.text
        answers = reply.json()["answers"]
        assert answers["all"]["probabilities"] == pytest.approx(own, abs=CLOSE)
        assert answers["all"]["choice"] == max(own, key=own.__getitem__)
        assert answers["some"]["probabilities"] == pytest.approx(renormalised(own, some), abs=CLOSE)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (choice("home care", "hospital"), "1 of 2 options are not labels of this model"),
        ({"type": "noul"}, "cannot answer a yes/no question"),
        ({"type": "score", "criteria": list(LABELS.values)}, "needs a model with ordered labels"),
    ],
)
def test_what_the_server_refuses(served: httpx2.Client, question: dict[str, Any], said: str) -> None:
    body = {"model": "triage", "state": "secret note", "questions": {"q": question}}
    reply = served.post("/v1/systemone", json=body)
    assert reply.status_code == 400 and said in reply.text and "'see a doctor'" in reply.text
    assert "secret" not in reply.text
    empty = served.post("/v1/systemone", json={**body, "state": " ", "questions": {"q": choice(*LABELS.values)}})
    assert empty.status_code == 400 and "no text" in empty.text


def test_the_pipeline_of_the_readme(exported: Path, bundle: Path) -> None:
    decide = pipeline("decision", model=str(exported), trust_remote_code=True, device="cpu")
    assert isinstance(decide, DecisionPipeline)
    for text, own in zip(TEXTS, expected(bundle), strict=True):
        answers = decide({"state": text, "questions": {"q": choice(*LABELS.values)}})
        assert answers["q"]["probabilities"] == pytest.approx(own, abs=CLOSE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    labels = MANY if architecture.startswith("t5") else YES_NO
    bundle, out = random_bundle(architecture, labels, tmp_path / "bundle"), tmp_path / architecture
    export_transformers_decision(bundle, out)
    model = AutoModelForDecision.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ in CLASSES.values() and model.dtype == torch.float32
    decide = DecisionPipeline(model=model, tokenizer=AutoProcessor.from_pretrained(out, trust_remote_code=True))
    own = expected(bundle)
    for text, probabilities in zip(TEXTS, own, strict=True):
        some = labels.values[1::3]
        questions: dict[str, Any] = {"all": choice(*labels.values), "some": choice(*some)}
        if labels.ordinal:
            levels = [f"{label}: as described" for label in labels.values[::-1]]
            questions["score"] = {"type": "score", "criteria": levels}
        else:
            questions["noul"] = {"type": "noul"}
        answers = decide({"state": text, "questions": questions})
        assert answers["all"]["probabilities"] == pytest.approx(probabilities, abs=CLOSE)
        assert answers["some"]["probabilities"] == pytest.approx(renormalised(probabilities, some), abs=CLOSE)
        if labels.ordinal:
            levels = answers["score"]["probabilities"].values()
            assert list(levels) == pytest.approx(list(probabilities.values())[::-1], abs=CLOSE)
        else:
            assert answers["noul"]["noul"] == pytest.approx(probabilities["yes"], abs=CLOSE)
    assert max(max(p.values()) - min(p.values()) for p in own) > 0.01, "a uniform distribution would test nothing"


def test_the_text_is_encoded_once_a_request(exported: Path) -> None:
    decide = pipeline("decision", model=str(exported), trust_remote_code=True, device="cpu")
    passes = []
    decide.model.get_encoder().register_forward_hook(lambda *_: passes.append("encoder"))
    decide.model.get_decoder().register_forward_hook(lambda *_: passes.append("decoder"))
    cross = decide.model.get_decoder().block[0].layer[1].EncDecAttention.k
    cross.register_forward_hook(lambda *_: passes.append("cross"))
    decide({"state": "fever", "questions": {name: choice(*LABELS.values) for name in "abc"}})
    assert sorted(passes) == ["cross", "decoder", "decoder", "encoder"]


def test_states_are_read_as_r2d_serve_reads_them(exported: Path) -> None:
    template = DecisionConfig.from_pretrained(exported).chat_template
    rendered = _compile_jinja_template(template)
    values: list[Any] = ["x", " y ", "", None, True, 1, 2.5, "é{{ 1 }}"]
    draw = random.Random(0)

    def state(depth: int) -> Any:
        kind = draw.choice(("value", "object", "list")) if depth else draw.choice(("object", "list"))
        if kind == "value" or depth == 4:
            return draw.choice(values)
        inner = [state(depth + 1) for _ in range(draw.randrange(4))]
        return inner if kind == "list" else {draw.choice(("items", "a b", "", f"k{i}")): v for i, v in enumerate(inner)}

    for given in ["  plain {{ text }} ", *(state(0) for _ in range(300))]:
        assert rendered.render(state=given) == f" {state_text(given, 10**6).strip()}"


def test_the_code_imports_nothing_but_torch_and_transformers_and_is_the_one_that_was_told(exported: Path) -> None:
    tree = ast.parse((exported / CODE).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in names} == {"__future__", "typing", "torch", "transformers"}
    assert sha256_file(exported / CODE) in (exported / "README.md").read_text()
    assert sha256_file(exported / CODE) == sha256_file(SOURCE / CODE)


def test_without_permission_nothing_is_loaded(exported: Path, forks: Forks, dataset: DatasetFolder) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForDecision.from_pretrained(exported, trust_remote_code=False)
    # Nor by this program, which takes no such folder at all.
    ended = forks.run("predict", exported, dataset.path / "test.jsonl")
    assert ended.returncode == 2 and "is not a bundle: it has no manifest.json" in ended.stderr


def test_what_is_refused(exported: Path, bundle: Path, forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = forks.run("export", bundle, "--out", out, "--transformers-decision", "--weights", "int8")
    assert ended.returncode == 2 and "leave --weights and --dataset out" in ended.stderr
    with pytest.raises(OutputError, match="already exists"):
        export_transformers_decision(bundle, exported)
    with pytest.raises(OutputError, match=r"has no decision\.json"):
        export_transformers_decision(bundle, bundle, force=True)
    open_set = random_bundle("t5", LabelSet(), tmp_path / "open")
    with pytest.raises(BundleError, match="has no label set"):
        export_transformers_decision(open_set, out)
    other = random_bundle("t5", YES_NO, tmp_path / "other")
    change_architecture(other)
    with pytest.raises(BundleError, match="is a umt5, which cannot be exported"):
        export_transformers_decision(other, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def change_architecture(bundle: Path) -> None:
    """Make a bundle's T5 a UMT5, which this package trains and no class of the export serves."""
    manifest = bundle / "manifest.json"
    config = UMT5Config(**{**json.loads((bundle / "model" / "config.json").read_text()), "model_type": "umt5"})
    UMT5ForConditionalGeneration(config).save_pretrained(bundle / "model")
    content = json.loads(manifest.read_text())
    content["files"] = {name: sha256_file(bundle / name) for name in content["files"]}
    manifest.write_text(json.dumps(content))


def test_force_replaces_an_export(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_transformers_decision(bundle, out)
    (out / "stray").touch()
    export_transformers_decision(bundle, out, force=True)
    assert not (out / "stray").exists() and (out / "MODEL_CARD.md").read_bytes() == (bundle / "README.md").read_bytes()
