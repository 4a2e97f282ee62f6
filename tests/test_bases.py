"""Every kind of base goes the whole road: train, resume, decide, explain, stream. What cannot is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import DECODER_ONLY, MORE_ENCODER_DECODERS, WITH_IMAGES, build, decoder_tokenizer, minilm, save
from toy import settings
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import UserError
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import ReadingSettings
from reason2decide.training.base import blank_copy, has_dropout, load_base, set_dropout
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

KINDS = (*MORE_ENCODER_DECODERS, *DECODER_ONLY, "qwen3-chat")


@pytest.mark.parametrize("kind", KINDS)
def test_every_base_goes_the_whole_road(kind: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    base, run = save(kind, tmp_path / "base"), tmp_path / "run"
    config = parse_config(
        settings(
            dataset,
            base=str(base),
            method="r2d-posterior",
            layout="two-prompt",
            sampling_cap=1.0,
            ramp_share=0.1,
            checkpoint_every=2,
        ),
        "test",
    )
    bundle = train(config, run)
    weights = (bundle / "model" / "model.safetensors").read_bytes()
    train(config, run, resume=str(run / "stage2" / "checkpoint-2"))
    assert (bundle / "model" / "model.safetensors").read_bytes() == weights

    predictor, records = Predictor.load(bundle), list(dataset.split("test"))
    predictions = list(predictor.predict(records))
    assert len(predictions) == len(records)
    for record, prediction in zip(records[:3], predictions, strict=False):
        (alone,) = predictor.predict([record])
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
        assert "".join(predictor.stream(record, prediction.predicted_label)) == alone.rationale


@pytest.mark.parametrize("kind", ("t5", "bart", "bert2bert", *KINDS))
@pytest.mark.parametrize("rate", [0.25, 0.0])
def test_a_copy_of_a_base_has_its_dropout(rate: float, kind: str) -> None:
    """Stage 2 trains a copy of Stage 1's model, and a resumed run the base itself: both drop the same."""
    model, _ = build(kind)
    set_dropout(model, 0.5)
    set_dropout(model, rate)
    copy = blank_copy(model)
    assert has_dropout(model) is has_dropout(copy) is (rate > 0)
    own, other = ({name: rates(module) for name, module in one.named_modules()} for one in (model, copy))
    assert own == other and {value for found in own.values() for value in found} <= {rate, 0.0}


def rates(module: Any) -> tuple[float, ...]:
    if isinstance(module, torch.nn.Dropout):
        return (module.p,)
    found = {name: value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)}
    return tuple(found[name] for name in sorted(found) if "layerdrop" not in name)


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_of_a_model_of_images_the_part_for_text_is_used(kind: str, tmp_path: Path) -> None:
    """With the same log-probabilities as the whole has for text."""
    whole, tokenizer = build(kind)
    model, _ = load_base(str(save(kind, tmp_path / "base")), texts=list, seed=0)
    assert not [name for name, _ in model.named_parameters() if "vision" in name]
    ids = torch.tensor([tokenizer("chest pain since 3 days").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, whole.eval()(input_ids=ids).logits)


def test_a_thin_decoder_learns(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Beside an encoder whose embeddings are small, logits scaled as T5's would hardly move: 4.7 after these steps."""
    base = str(save("modernbert", tmp_path / "base"))
    run = settings(dataset, base=base, method="dss", steps=60, learning_rate=3e-3, dropout=0.0)
    train(parse_config(run, "test"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    losses = [row["loss"] for row in rows if row["event"] == "train"]
    assert losses[0] > 5 and losses[-1] < 3


def refusal(base: object, dataset: DatasetFolder, out: Path, **changes: Any) -> str:
    """What is said of a base that cannot be used; nothing is left behind."""
    with pytest.raises(UserError) as error:
        train(parse_config(settings(dataset, base=base, **changes), "test"), out)
    assert not out.exists()
    return str(error.value)


def described(folder: Path, **content: Any) -> Path:
    """A folder with a configuration and no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("siglip", "a model of vision without a part that writes text alone"),
        ("whisper", "a whisper, which does not answer text with text"),
        ("vit", "a vit, which writes no text"),
        ("modernbert", 'an encoder alone; give it as base = {encoder = "'),
    ],
)
def test_models_of_another_kind_are_refused(kind: str, said: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path / "base")
    assert said in refusal(str(tmp_path / "base"), dataset, tmp_path / "run")


def test_what_is_no_model_is_refused(dataset: DatasetFolder, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-q4.gguf").write_bytes(b"GGUF")
    for given in ("gguf", "gguf/model-q4.gguf"):
        said = refusal(str(tmp_path / given), dataset, tmp_path / "run")
        assert "GGUF" in said and "the folder that it was converted from" in said
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "merge it into its base" in refusal(str(adapter), dataset, tmp_path / "run")


def test_rounded_weights_are_refused(dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save("qwen3", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    assert "are rounded for use" in refusal(str(base), dataset, tmp_path / "run")


def test_code_from_a_folder_is_never_run(dataset: DatasetFolder, tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    base = described(tmp_path / "base", model_type="own", auto_map=auto_map, architectures=["OwnModel"])
    (base / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "needs code from its own folder, which is never run" in refusal(str(base), dataset, tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_a_model_too_large_is_refused_before_its_weights_are_read(dataset: DatasetFolder, tmp_path: Path) -> None:
    """A model of a trillion parameters, of which there is only the configuration."""
    size = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 256, "vocab_size": 1000}
    AutoConfig.for_model("llama", **size).save_pretrained(tmp_path / "base")
    said = refusal(str(tmp_path / "base"), dataset, tmp_path / "run")
    assert re.search(r"has \d{4}\.\d billion parameters, \d+ GiB in 32 bits each, and there are \d+ GiB", said)


def test_weights_that_are_not_there_are_not_made_up(dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save("qwen3", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of its weights, such as model.layers.1.mlp.up_proj.weight" in refusal(
        str(base), dataset, tmp_path / "run"
    )


def test_a_base_without_a_tokenizer_is_refused(dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save("qwen3", tmp_path / "base")
    for file in base.glob("*token*"):
        file.unlink()
    assert "has no tokenizer beside its weights" in refusal(str(base), dataset, tmp_path / "run")
    (base / "tokenizer.json").write_text("{}")
    assert "has no tokenizer that can be loaded" in refusal(str(base), dataset, tmp_path / "run")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0].content ", "fails (unexpected end of template"),
        ("{{ raise_exception('no system role') }}", "fails (no system role"),
        ("<start>assistant: ", "renders the user's text 0 times, expected once"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "renders the user's text 2 times"),
        ("{{ messages[0].content }}", "begins no answer after the user's text"),
    ],
)
def test_broken_chat_templates_are_refused(template: str, said: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save("qwen3-chat", tmp_path / "base")
    (base / "chat_template.jinja").write_text(template)
    assert said in refusal(str(base), dataset, tmp_path / "run")


def test_labels_that_the_vocabulary_cannot_write_are_refused(tmp_path: Path) -> None:
    labels = LabelSet(("home care", "Ærzte \u2603"))
    records = [Record(f"r{i}", "mild rash", labels.values[i % 2], {"llm": "So it is."}) for i in range(12)]
    info = DatasetInfo("toy", "triage", labels, ("llm",))
    dataset = write_dataset(tmp_path / "data", info, {"train": records[:8], "validation": records[8:]})
    tokenizer = build("t5")[1]
    assert tokenizer.unk_token_id is not None
    said = refusal({"encoder": str(minilm())}, dataset, tmp_path / "run")
    assert "cannot write the label 'Ærzte \u2603'" in said and "take another base" in said


def test_positions_hold_text_and_answer_together(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Learned ones, of which a token too many ends a step: text, task, the label shown and the rationale."""
    tokenizer, base = decoder_tokenizer(), tmp_path / "base"
    shape = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **shape)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    long = [replace(own, text=f"{own.text} and more of it" * 20) for own in dataset.split("train")]
    rest = {split: list(dataset.split(split)) for split in ("validation", "test")}
    dataset = write_dataset(tmp_path / "long", dataset.info, {"train": long, **rest})
    label = max(len(tokenizer(f" {own}").input_ids) for own in dataset.info.labels.values)
    lengths = {"input": 128, "rationale": 24, "label": label}
    said = refusal(str(base), dataset, tmp_path / "run", lengths=lengths)
    found = re.search(r"set lengths\.input to at most (\d+)", said)
    assert found is not None and "128 positions for all" in said
    lengths["input"] = int(found[1])
    for layout in ("two-prompt", "one-pass"):
        run = tmp_path / layout
        train(parse_config(settings(dataset, base=str(base), lengths=lengths, layout=layout), "test"), run)


def test_in_one_pass_the_label_takes_positions_of_the_decoder(dataset: DatasetFolder, tmp_path: Path) -> None:
    """BART of 256 positions: 240 for the rationale fit alone, not after a label."""
    base, lengths = str(save("bart", tmp_path / "base")), {"input": 64, "rationale": 240, "label": 32}
    said = refusal(base, dataset, tmp_path / "run", lengths=lengths, layout="one-pass")
    assert "lengths.rationale is 240, and lengths.label 32 before it" in said and "at most 224" in said
    train(parse_config(settings(dataset, base=base, lengths=lengths), "test"), tmp_path / "run")


def test_at_use_text_and_answer_share_the_positions(dataset: DatasetFolder, tmp_path: Path) -> None:
    bundle = train(
        parse_config(settings(dataset, base=str(save("llama", tmp_path / "base"))), "test"), tmp_path / "run"
    )
    most = 1024 - Predictor.load(bundle).encoder.longest_after_text
    assert most < 1024 - 32 - 24  # a label, a rationale, and the task between
    Predictor.load(bundle, ReadingSettings(input_tokens=most))
    with pytest.raises(UserError, match=f"reads prompts of at most {most} tokens, {most + 1} are asked for"):
        Predictor.load(bundle, ReadingSettings(input_tokens=most + 1))


def test_a_base_whose_attention_sees_padding_is_found_out(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama without its mask: each score is a number, and none is right."""
    base = save("llama", tmp_path / "base")
    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(
        LlamaForCausalLM,
        "forward",
        lambda self, *, attention_mask, **given: forward(self, attention_mask=None, **given),
    )
    said = refusal(str(base), dataset, tmp_path / "run")
    assert "was tried before training" in said and "its attention sees padding" in said


def test_weights_that_do_not_come_back_are_found_out(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save("qwen3", tmp_path / "base")
    saved = Qwen3ForCausalLM.save_pretrained

    def halved(self: Any, folder: Any, **more: Any) -> None:
        saved(self, folder, **more)
        weights = load_file(Path(folder) / "model.safetensors")
        save_file(
            {name: value / 2 for name, value in weights.items()}, Path(folder) / "model.safetensors", {"format": "pt"}
        )

    monkeypatch.setattr(Qwen3ForCausalLM, "save_pretrained", halved)
    assert "saved and loaded, it gives other log-probabilities" in refusal(str(base), dataset, tmp_path / "run")
