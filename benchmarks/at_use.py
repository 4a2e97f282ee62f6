"""What helps a reason while it is written: guidance, the best of several, a copy bias; and how well the check works.

    python benchmarks/at_use.py RUN/bundle runs/calls [--records 300]

For test calls, each way of writing: the decision stays, the reason changes. Consistent: the simulators read the
decision from it, with its verdict and without, or its weighed facts lead there (read exactly); swap: the same of the
second choice and the reason written for it; how true the reason is (`docs/evaluation.md`); seconds a reason, one
thread. *By the note* picks of eight drafts the one that asserts least that the note denies (the reader of
`cited_contradicted`), then by the label's posterior. *Copy bias* adds to the logits of tokens that the note has.
*Masked* forbids tokens that neither the note has nor one training reason in twenty.

Then two checks of the greedy reasons: how often each flags those whose weights lead to another label than the
decision (read exactly), and the others; AUROC for telling them apart; and how often the same reasons are flagged under
the second choice. The threshold is that of 5 % of validation's gold reasons.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import LogitsProcessor, LogitsProcessorList

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sampling import some_explained
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.sources.synthetic_calls.weighing import level_argued
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.contradiction import contradictions
from reason2decide.evaluation.metrics.synthetic_truth import CitedFalse, DecidingOmitted
from reason2decide.evaluation.readers import Simulators
from reason2decide.model.calibration import conformal_cutoff
from reason2decide.model.decoding import Decoding
from reason2decide.model.engines.torch import TorchEngine
from reason2decide.model.explaining import Explained, ReasonsToRead, label_posteriors, reason_candidate
from reason2decide.model.operating_point import UNSUPPORTED
from reason2decide.model.padding import padded
from reason2decide.model.predictor import Predictor
from reason2decide.model.prompt_encoder import TokenPrompt
from reason2decide.model.reason_reader import Lessons, ReasonReader
from reason2decide.model.reasons import MOST_LABELS, ReasonSettings

DRAFTS = 8
Write = Callable[[Sequence[Record], Sequence[str]], list[str]]


class TokenBias(LogitsProcessor):  # type: ignore[misc]
    """Adds a bias to the logits of each row's tokens, (rows, vocabulary)."""

    def __init__(self, bias: Any) -> None:
        self.bias = bias

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores + self.bias


def posteriors(predictor: Predictor, explained: Sequence[Explained], drafts: Sequence[Sequence[str]]) -> list[Any]:
    """The label's posterior given each draft."""
    asked = [
        ReasonsToRead(
            own.text.part(0),
            own.likeliest(MOST_LABELS),
            [reason_candidate(predictor.encoder, text) for text in texts],
        )
        for own, texts in zip(explained, drafts, strict=True)
    ]
    return [table[0] for table in label_posteriors(predictor.engine, predictor.encoder, asked)]


def by_the_note(predictor: Predictor) -> Write:
    """Of eight drafts, the one that asserts least of what the note denies; of these the highest posterior."""

    def write(records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        several = Predictor(predictor.bundle, predictor.engine, reasons=ReasonSettings(best_of=DRAFTS))
        explained = several._explained(records, labels)
        drafts = several.writer.drafts(explained)
        found = posteriors(predictor, explained, drafts)
        chosen = []
        for record, texts, supports in zip(records, drafts, found, strict=True):
            counts = [len(contradictions(record.text, text)) for text in texts]
            chosen.append(texts[min(range(len(texts)), key=lambda i: (counts[i], -supports[i]))])
        return chosen

    return write


def copy_bias(strength: float) -> Callable[[Any, int], Any]:
    """A bias towards the tokens of the row's prompt."""
    return lambda prompts, vocabulary: torch.zeros(len(prompts), vocabulary).scatter_(1, prompts, strength)


def masked(predictor: Predictor, dataset: DatasetFolder) -> Callable[[Any, int], Any]:
    """Forbids tokens that neither the prompt has nor one reason in twenty of training."""
    learnt = some_explained(dataset.split("train"), "llm", 2000)
    targets = predictor.encoder.target_ids([record.rationales["llm"] for record in learnt])
    counts = Counter(token for ids in targets for token in set(ids))
    common = [token for token, count in counts.items() if count >= len(learnt) / 20]

    def bias(prompts: Any, vocabulary: int) -> Any:
        forbidden = torch.full((len(prompts), vocabulary), -math.inf).scatter_(1, prompts, 0.0)
        forbidden[:, common] = 0.0
        return forbidden

    return bias


def biased(predictor: Predictor, bias: Callable[[Any, int], Any]) -> Write:
    """Greedy, with a bias."""
    engine = predictor.engine
    assert isinstance(engine, TorchEngine)

    tokenizer = predictor.encoder.tokenizer

    def generate(prompts: Sequence[TokenPrompt], most: int, decoding: Decoding) -> list[list[int]]:
        input_ids, mask = padded([prompt.text for prompt in prompts], tokenizer.pad_token_id, engine.device)
        output = engine.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([TokenBias(bias(input_ids, engine.model.config.vocab_size))]),
        )
        return [[id for id in row if id not in engine._special] for row in output.tolist()]

    def write(records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        plain = Predictor(predictor.bundle, engine)
        original, engine.generate = engine.generate, generate  # type: ignore[method-assign, assignment]
        try:
            return plain.rationales(records, labels)
        finally:
            engine.generate = original  # type: ignore[method-assign]

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--records", type=int, default=300)
    args = parser.parse_args()
    set_quiet(True)
    dataset, predictor = DatasetFolder.open(args.dataset), Predictor.load(args.bundle)
    records = some_explained(dataset.split("test"), "llm", args.records)
    simulators = Simulators.fit(dataset.split("train"), dataset.info.labels, "llm")
    distributions = predictor.distributions(records)
    ranked = [sorted(own, key=lambda label: -own[label]) for own in distributions]
    decided, second = [own[0] for own in ranked], [own[1] for own in ranked]

    rules = load_rules()

    def weights_lead_to(texts: Sequence[str]) -> list[str]:
        levels = [level_argued(text, rules) for text in texts]
        return ["nowhere" if level is None else rules.labels[level] for level in levels]

    def settings(**values: Any) -> Write:
        own = Predictor(predictor.bundle, predictor.engine, reasons=ReasonSettings(**values))
        return own.rationales

    ways: dict[str, Write] = {
        "greedy": settings(),
        "guidance 1": settings(guidance=1.0),
        "guidance 2": settings(guidance=2.0),
        "guidance 4": settings(guidance=4.0),
        "best of 8": settings(best_of=DRAFTS),
        "best of 8 by the note": by_the_note(predictor),
        "copy bias 0.5": biased(predictor, copy_bias(0.5)),
        "copy bias 1": biased(predictor, copy_bias(1.0)),
        "masked": biased(predictor, masked(predictor, dataset)),
    }
    columns = "consistent | no verdict | by weights | swap | no verdict | by weights | cited_false | deciding_omitted"
    print(f"| | {columns} | seconds |\n|" + "---|" * 10)
    for name, write in ways.items():
        started = time.perf_counter()
        texts = write(records, decided)
        seconds = (time.perf_counter() - started) / len(records)
        swapped = write(records, second)
        figures = [
            np.mean([label == wanted for label, wanted in zip(read(own), labels, strict=True)])
            for own, labels in ((texts, decided), (swapped, second))
            for read in (simulators.read_rationales, simulators.read_reasons, weights_lead_to)
        ]
        found = [Prediction(r.id, label, None, text) for r, label, text in zip(records, decided, texts, strict=True)]
        examples = Examples(records, found, dataset.info.labels, "llm")
        figures += [
            float(metric.aggregate(metric.statistics(examples).total())) for metric in (CitedFalse(), DecidingOmitted())
        ]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in figures) + f" | {seconds:.2f} |", flush=True)

    lessons = Lessons.of(dataset.split("train"), dataset.info.labels, "llm")
    reader = ReasonReader.fit(lessons, dataset.info.labels, "llm")
    gold = some_explained(dataset.split("validation"), "llm", args.records)
    texts = ways["greedy"](records, decided)
    astray = np.array([label != wanted for label, wanted in zip(weights_lead_to(texts), decided, strict=True)])

    def by_reader(of: Sequence[Record], reasons: Sequence[str], labels: Sequence[str]) -> Any:
        return reader.supports(reasons, labels)

    def by_posterior(of: Sequence[Record], reasons: Sequence[str], labels: Sequence[str]) -> Any:
        found = posteriors(predictor, predictor._explained(of, labels), [[text] for text in reasons])
        return np.array([own[0] for own in found])

    print("\n| check | flags of reasons that lead elsewhere | of others | AUROC | under the second choice | seconds |")
    print("|" + "---|" * 6)
    for name, support_of in (("the bundle's reader", by_reader), ("the model's posterior", by_posterior)):
        known = support_of(gold, [own.rationales["llm"] for own in gold], [str(own.label) for own in gold])
        cutoff = conformal_cutoff(known, UNSUPPORTED)
        started = time.perf_counter()
        support = support_of(records, texts, decided)
        seconds = (time.perf_counter() - started) / len(records)
        under = np.mean(support_of(records, texts, second) < cutoff)
        flags = [np.mean(support[which] < cutoff) for which in (astray, ~astray)]
        auroc = roc_auc_score(astray, -support) if 0 < astray.sum() < len(astray) else float("nan")
        print(
            f"| {name} | {flags[0]:.3f} of {astray.sum()} | {flags[1]:.3f} of {(~astray).sum()} | {auroc:.3f} "
            f"| {under:.3f} | {seconds:.4f} |"
        )


if __name__ == "__main__":
    main()
