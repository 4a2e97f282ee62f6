"""The equation is held: every step's gradient against one built by hand, record by record, from the paper's formulas.

By hand means: whole prompts as strings, one plain forward pass a record without padding, and the formulas of
`docs/paper_map.md` written out again. The program's side is `train` itself, cut into batches.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import LABELS, run, write_contrasted
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import DataError
from reason2decide.training import cycle, objective, shown_labels, tiny, trainer

STEPS, WARMUP, RAMP, ALPHA, CAP, SEED = 6, 2, 3, 0.7, 0.9, 0
STAGE2: dict[str, Any] = {  # the schedule of a second stage
    "warmup_share": {"stage2": WARMUP / STEPS},
    "ramp_share": {"stage2": RAMP / STEPS},
    "sampling_cap": {"stage2": CAP},
    "alpha": {"stage2": ALPHA},
}
Step = tuple[dict[str, Tensor], dict[str, Tensor]]  # weights before the step, and its gradient


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What every optimizer step of a run starts from and what gradient it takes, recorded as the run goes."""
    recorded: list[Step] = []
    clip_gradients = trainer.clip_gradients

    def record(model: Any, max_norm: float) -> Tensor:
        named = dict(model.named_parameters())
        weights = {name: value.detach().clone() for name, value in named.items()}
        gradient = {
            name: torch.zeros_like(value) if value.grad is None else value.grad.clone() for name, value in named.items()
        }
        recorded.append((weights, gradient))
        return clip_gradients(model, max_norm)

    monkeypatch.setattr(trainer, "clip_gradients", record)
    return recorded


class ByHand:
    """A model as transformers loads it, its weights replaced, read one record at a time."""

    def __init__(self, folder: Path, layout: str = "two-prompt") -> None:
        self.one_pass = layout == "one-pass"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()

    def tokens(self, target: str) -> int:
        return len(self.tokenizer(target).input_ids)

    def nll(self, prompt: str, target: str) -> Tensor:
        """-log P(target | prompt), summed over the target's tokens."""
        ids = {key: torch.tensor([self.tokenizer(text).input_ids]) for key, text in (("x", prompt), ("y", target))}
        loss: Tensor = self.model(input_ids=ids["x"], labels=ids["y"]).loss
        return loss * self.tokens(target)

    def reason_nll(self, text: str, label: str, why: str) -> Tensor:
        """-log P(r | x, y), summed over its tokens; in one pass, the label and its end precede it in the answer."""
        if not self.one_pass:
            return self.nll(f"given label: {label}, explain: {text}", why)
        read, before, answer = (self.tokenizer(own).input_ids for own in (f"predict: {text}", label, why))
        given = [self.model.config.decoder_start_token_id, *before, *answer[:-1]]
        logits = self.model(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([given])).logits[0]
        return torch.nn.functional.cross_entropy(logits[-len(answer) :], torch.tensor(answer), reduction="sum")

    def predicted(self, text: str) -> str:
        """y^ = argmax P(y | x)."""
        with torch.no_grad():
            return min(LABELS.values, key=lambda label: float(self.nll(f"predict: {text}", label)))

    def ranked(self, text: str) -> list[str]:
        """The labels, the most probable first."""
        with torch.no_grad():
            return sorted(LABELS.values, key=lambda label: float(self.nll(f"predict: {text}", label)))

    def logits(self, prompt: str, target: str) -> Tensor:
        """Of the target's tokens, (1, tokens, vocabulary)."""
        ids = {key: torch.tensor([self.tokenizer(text).input_ids]) for key, text in (("x", prompt), ("y", target))}
        logits: Tensor = self.model(input_ids=ids["x"], labels=ids["y"]).logits
        return logits

    def nll_of_soft(self, soft: Tensor, target: str) -> Tensor:
        """-log P(target | "predict: " and a mixture of tokens at each place), summed over the target's tokens."""
        embedding = self.model.get_input_embeddings()
        ids = self.tokenizer("predict:").input_ids
        begin, end = embedding(torch.tensor(ids[:-1])), embedding(torch.tensor(ids[-1:]))
        whole = torch.cat([begin, soft @ embedding.weight, end])[None]
        loss: Tensor = self.model(inputs_embeds=whole, labels=torch.tensor([self.tokenizer(target).input_ids])).loss
        return loss * self.tokens(target)

    def gradient(self, weights: dict[str, Tensor], loss: Any) -> dict[str, Tensor]:
        self.model.load_state_dict(weights, strict=False)
        self.model.zero_grad()
        loss().backward()
        return {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in self.model.named_parameters()
        }


def drawn(pi: float, step: int, record_id: str) -> bool:
    """Whether y~ is y^: the hash of (seed, step, record id), as 64 bits after the point, is under pi."""
    digest = hashlib.blake2b(f"{SEED}/{step}/{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < pi


@pytest.fixture(autouse=True)
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base has GELUs: where a unit's input is 0 but for rounding, a ReLU's slope differs between machines."""
    monkeypatch.setattr(tiny, "T5Config", partial(T5Config, feed_forward_proj="gelu"))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other| over all parameters together."""
    assert one.keys() == other.keys()
    difference = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    size = sum(float(value.double().square().sum()) for value in other.values())
    return float((difference / size) ** 0.5)


def train_on_everything(dataset: DatasetFolder, out: Path, **changes: Any) -> Path:
    """A run whose every step takes all 48 records, in four batches of unlike numbers of tokens."""
    return run(dataset, out, steps=STEPS, batch_size=12, gradient_accumulation=4, dropout=0.0, seed=SEED, **changes)


def test_a_stage_2_step_is_the_papers_equation(dataset: DatasetFolder, tmp_path: Path, steps: list[Step]) -> None:
    """alpha_t · mean L_pred + (1 - alpha_t) · mean L_expl, y~ in the explain prompt, means over the step's tokens."""
    bundle = train_on_everything(
        dataset,
        tmp_path / "run",
        method="r2d-no-stage1",
        warmup_share=WARMUP / STEPS,
        ramp_share=RAMP / STEPS,
        sampling_cap=CAP,
        alpha=ALPHA,
    )
    hand, records = ByHand(bundle / "model"), list(dataset.split("train"))
    explained = [record for record in records if "llm" in record.rationales]
    assert len(steps) == STEPS and 0 < len(explained) < len(records)
    wrong = 0
    for step in (1, 3, 4, 5):  # half of alpha and no sampling; then pi = 1/3, 2/3 and the cap
        weights, gradient = steps[step]
        alpha = min(ALPHA, ALPHA * step / WARMUP)
        pi = 0.0 if step < WARMUP else min(CAP, (step - WARMUP) / RAMP)

        def loss(step: int = step, alpha: float = alpha, pi: float = pi) -> Tensor:
            nonlocal wrong
            label_nll = rationale_nll = torch.zeros(())
            for record in records:
                assert record.label is not None
                label_nll = label_nll + hand.nll(f"predict: {record.text}", record.label)
            for record in explained:
                assert record.label is not None
                shown = hand.predicted(record.text) if drawn(pi, step, record.id) else record.label
                wrong += shown != record.label
                prompt = f"given label: {shown}, explain: {record.text}"
                rationale_nll = rationale_nll + hand.nll(prompt, record.rationales["llm"])
            label_tokens = sum(hand.tokens(str(record.label)) for record in records)
            rationale_tokens = sum(hand.tokens(record.rationales["llm"]) for record in explained)
            return alpha * label_nll / label_tokens + (1 - alpha) * rationale_nll / rationale_tokens

        assert distance(gradient, hand.gradient(weights, loss)) < 1e-5, step
    assert wrong > 20  # else this would not tell y^ from y*


@pytest.mark.parametrize("layout", ["two-prompt", "one-pass"])
@pytest.mark.parametrize(("method", "share"), [("r2d-skip", 0.0), ("r2d-contrast", 0.0), ("r2d-contrast", 0.5)])
def test_under_a_wrong_label_nothing_is_learnt_or_a_rationale_for_it(
    method: str, share: float, layout: str, tmp_path: Path, steps: list[Step]
) -> None:
    """1{y~ = y*} L_expl, or L_expl of the rationale for y~ where the record has one; the divisor stays that of r2d.

    A share of the records with a rationale for y-, the wrong label or the runner-up, are shown that.
    """
    dataset = write_contrasted(tmp_path / "data")
    bundle = train_on_everything(
        dataset,
        tmp_path / "run",
        method=method,
        layout=layout,
        **STAGE2,
        contrast_share={"stage2": share},
    )
    hand, records = ByHand(bundle / "model", layout), list(dataset.split("train"))
    explained = [record for record in records if "llm" in record.rationales]
    learnt = {"gold": 0, "contrast": 0, "left out": 0}
    for step in (3, 5):
        weights, gradient = steps[STEPS + step]  # of Stage 2
        pi = min(CAP, (step - WARMUP) / RAMP)

        def loss(step: int = step, pi: float = pi) -> Tensor:
            label_nll = rationale_nll = torch.zeros(())
            for record in records:
                label_nll = label_nll + hand.nll(f"predict: {record.text}", str(record.label))
            for record in explained:
                best, second = hand.ranked(record.text)[:2]
                shown = best if drawn(pi, step, record.id) else str(record.label)
                rival = best if best != record.label else second
                if drawn(share, step, f"{record.id}/contrast") and rival in record.contrasts.get("llm", {}):
                    shown = rival
                target: str | None = record.rationales["llm"]
                if shown != record.label:
                    target = record.contrasts.get("llm", {}).get(shown) if method == "r2d-contrast" else None
                learnt["gold" if shown == record.label else "contrast" if target else "left out"] += 1
                if target is not None:
                    rationale_nll = rationale_nll + hand.reason_nll(record.text, shown, target)
            label_tokens = sum(hand.tokens(str(record.label)) for record in records)
            rationale_tokens = sum(hand.tokens(record.rationales["llm"]) for record in explained)
            return ALPHA * label_nll / label_tokens + (1 - ALPHA) * rationale_nll / rationale_tokens

        assert distance(gradient, hand.gradient(weights, loss)) < 1e-5, step
    assert learnt["gold"] > 10 and learnt["left out"] > 5
    assert (learnt["contrast"] > 5) == (method == "r2d-contrast")
    logged = [row for row in read_log(tmp_path / "run") if row["stage"] == "stage2" and row["event"] == "train"]
    assert share or all(row["contrasted"] + row["skipped"] == row["drawn_wrong"] for row in logged)
    for name, counted in (("skipped", "left out"), ("contrasted", "contrast")):
        assert sum(logged[step][name] for step in (3, 5)) == learnt[counted]


@pytest.mark.parametrize("layout", ["two-prompt", "one-pass"])
@pytest.mark.parametrize("method", ["r2d-posterior", "r2d-contrast-posterior"])
def test_the_posterior_of_the_label_is_learnt_from_a_share_of_records(
    method: str, layout: str, tmp_path: Path, steps: list[Step]
) -> None:
    """(1 - alpha) (L_rationale + lambda L_post): the latter over drawn records, y- the wrong label or the runner-up."""
    weight, share, dataset = 0.8, 0.5, write_contrasted(tmp_path / "data")
    bundle = train_on_everything(
        dataset,
        tmp_path / "run",
        method=method,
        layout=layout,
        **STAGE2,
        posterior_weight={"stage2": weight},
        posterior_share={"stage2": share},
        contrast_share={"stage2": 0.0},
    )
    hand, records = ByHand(bundle / "model", layout), list(dataset.split("train"))
    explained = [record for record in records if "llm" in record.rationales]
    taken = {"shown gold": 0, "shown another": 0, "wrong": 0}
    for step in (1, 4, 5):
        weights, gradient = steps[STEPS + step]  # of Stage 2
        alpha = min(ALPHA, ALPHA * step / WARMUP)
        pi = 0.0 if step < WARMUP else min(CAP, (step - WARMUP) / RAMP)

        def loss(step: int = step, alpha: float = alpha, pi: float = pi) -> Tensor:
            label_nll = rationale_nll = posterior = torch.zeros(())
            for record in records:
                label_nll = label_nll + hand.nll(f"predict: {record.text}", str(record.label))
            for record in explained:
                gold, why = str(record.label), record.rationales["llm"]
                best, second = hand.ranked(record.text)[:2]
                shown = best if drawn(pi, step, record.id) else gold
                contrasts = record.contrasts.get("llm", {}) if "contrast" in method else {}
                target = why if shown == gold else contrasts.get(shown)
                if target is not None:
                    rationale_nll = rationale_nll + hand.reason_nll(record.text, shown, target)
                if drawn(share, step, f"{record.id}/posterior"):
                    rival = best if best != gold else second
                    taken["shown gold" if shown == gold else "shown another"] += 1
                    taken["wrong"] += best != gold
                    of_gold, of_rival = (
                        torch.exp(-hand.reason_nll(record.text, label, why).double()) for label in (gold, rival)
                    )
                    posterior = posterior - torch.log(of_gold / (of_gold + of_rival))
            label_tokens = sum(hand.tokens(str(record.label)) for record in records)
            rationale_tokens = sum(hand.tokens(record.rationales["llm"]) for record in explained)
            reasons = rationale_nll / rationale_tokens + weight * posterior / (share * len(explained))
            return alpha * label_nll / label_tokens + (1 - alpha) * reasons

        assert distance(gradient, hand.gradient(weights, loss)) < 1e-5, step
    assert min(taken.values()) > 5
    logged = [row for row in read_log(tmp_path / "run") if row["stage"] == "stage2" and row["event"] == "train"]
    assert all(row["posterior_loss"] > 0 for row in logged)


def test_the_cycle_recovers_the_shown_label_from_the_soft_rationale(
    dataset: DatasetFolder, tmp_path: Path, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """+ gamma L_cycle after the warm-up: r^ as soft embeddings after "predict:", one record at a time, no padding."""

    def without_noise(logits: Tensor, tau: float) -> Tensor:
        return (logits / tau).softmax(-1)

    monkeypatch.setattr(cycle.functional, "gumbel_softmax", without_noise)
    gamma = 0.6
    bundle = train_on_everything(
        dataset,
        tmp_path / "run",
        method="r2d-c",
        **STAGE2,
        cycle_weight={"stage2": gamma},
        adaptive_sampling={"stage2": False},
    )
    hand, records = ByHand(bundle / "model"), list(dataset.split("train"))
    explained = [record for record in records if "llm" in record.rationales]
    wrong = 0
    for step in (1, 2, 5):
        weights, gradient = steps[STEPS + step]
        alpha = min(ALPHA, ALPHA * step / WARMUP)
        pi = 0.0 if step < WARMUP else min(CAP, (step - WARMUP) / RAMP)
        temperature = 0.5 ** max(0.0, (step - WARMUP) / (STEPS - WARMUP))

        def loss(step: int = step, alpha: float = alpha, pi: float = pi, temperature: float = temperature) -> Tensor:
            nonlocal wrong
            label_nll = rationale_nll = recovered = torch.zeros(())
            for record in records:
                label_nll = label_nll + hand.nll(f"predict: {record.text}", str(record.label))
            for record in explained:
                shown = hand.predicted(record.text) if drawn(pi, step, record.id) else str(record.label)
                wrong += shown != record.label
                prompt, why = f"given label: {shown}, explain: {record.text}", record.rationales["llm"]
                rationale_nll = rationale_nll + hand.nll(prompt, why)
                soft = (hand.logits(prompt, why)[0, :-1] / temperature).softmax(-1)  # all but the end token
                recovered = recovered + hand.nll_of_soft(soft, shown) / hand.tokens(shown)
            label_tokens = sum(hand.tokens(str(record.label)) for record in records)
            rationale_tokens = sum(hand.tokens(record.rationales["llm"]) for record in explained)
            total = alpha * label_nll / label_tokens + (1 - alpha) * rationale_nll / rationale_tokens
            return total + (gamma * recovered / len(explained) if step >= WARMUP else 0.0)

        assert distance(gradient, hand.gradient(weights, loss)) < 1e-5, step
    assert wrong > 10


def read_log(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]


def test_a_method_of_contrasts_needs_some(dataset: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no record of .* has one from source 'llm'.*rationalize --for-labels.*r2d-posterior"
    ):
        run(dataset, tmp_path / "run", method="r2d-contrast")


def test_stage_1_learns_rationales_without_a_label(dataset: DatasetFolder, tmp_path: Path, steps: list[Step]) -> None:
    bundle = train_on_everything(dataset, tmp_path / "run", method="r2d")
    hand = ByHand(bundle / "model")
    explained = [record for record in dataset.split("train") if "llm" in record.rationales]
    weights, gradient = steps[0]

    def loss() -> Tensor:
        nll = sum((hand.nll(f"explain: {r.text}", r.rationales["llm"]) for r in explained), torch.zeros(()))
        return nll / sum(hand.tokens(r.rationales["llm"]) for r in explained)

    # 36 of the 48 records have a rationale: the step takes all of them, in three batches of 12.
    assert len(explained) == 36
    assert distance(gradient, hand.gradient(weights, loss)) < 1e-5


@pytest.mark.parametrize("method", ["sft", "dss"])
def test_the_baselines_are_the_same_equation(
    method: str, dataset: DatasetFolder, tmp_path: Path, steps: list[Step]
) -> None:
    """sft: L_pred alone. dss: half of each, and its explain prompt knows no label."""
    bundle = train_on_everything(dataset, tmp_path / "run", method=method)
    hand, records = ByHand(bundle / "model"), list(dataset.split("train"))

    def mean(pairs: list[tuple[str, str]]) -> Tensor:
        total = sum((hand.nll(prompt, target) for prompt, target in pairs), torch.zeros(()))
        return total / sum(hand.tokens(target) for _, target in pairs)

    def loss() -> Tensor:
        label_loss = mean([(f"predict: {record.text}", str(record.label)) for record in records])
        if method == "sft":
            return label_loss
        explained = [record for record in records if "llm" in record.rationales]
        return 0.5 * label_loss + 0.5 * mean([(f"explain: {r.text}", r.rationales["llm"]) for r in explained])

    for weights, gradient in steps[:2]:
        assert distance(gradient, hand.gradient(weights, loss)) < 1e-5


@pytest.mark.parametrize("dropout", [True, False])
def test_predicted_labels_take_no_gradient(
    dropout: bool, dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No graph is kept of the scores that y^ is the best of, whether they are taken with dropout or without."""
    scored: list[Tensor] = []
    leading_labels = shown_labels.leading_labels

    def record(scores: list[Tensor]) -> Any:
        scored.extend(scores)
        return leading_labels(scores)

    monkeypatch.setattr(shown_labels, "leading_labels", record)
    train_on_everything(dataset, tmp_path / "run", method="r2d-no-stage1", ramp_share=0.1, conditioning_dropout=dropout)
    assert len(scored) > 100
    assert not any(own.requires_grad for own in scored)


def test_without_conditioning_dropout_the_model_shows_what_it_would_decide(
    dataset: DatasetFolder, tmp_path: Path, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """y^ with dropout off is the argmax of the model in evaluation mode, though the step itself drops half."""
    shown: list[dict[str, str]] = []
    explain_batch = objective.Objective.explain_batch

    def record(self: Any, examples: Any, rows: Any) -> Any:
        if len(examples) == 48:  # a step; validation has fewer
            shown.append({examples[row].id: label for row, label, _ in rows})
        return explain_batch(self, examples, rows)

    monkeypatch.setattr(objective.Objective, "explain_batch", record)
    bundle = run(
        dataset,
        tmp_path / "run",
        method="r2d-no-stage1",
        steps=STEPS,
        batch_size=48,
        dropout=0.5,
        conditioning_dropout=False,
        evaluate_every=STEPS,
        warmup_share=0.0,
        ramp_share=0.0,
    )
    hand = ByHand(bundle / "model")
    texts: dict[str, Record] = {record.id: record for record in dataset.split("train")}
    for step in range(STEPS):
        hand.model.load_state_dict(steps[step][0], strict=False)
        own = [id for id in texts if "llm" in texts[id].rationales and drawn(CAP, step, id)]
        assert len(own) > 20
        assert {id: shown[step][id] for id in own} == {id: hand.predicted(texts[id].text) for id in own}
