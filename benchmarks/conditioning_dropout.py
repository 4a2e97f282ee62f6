"""How often y^ differs when it is predicted with dropout on, and how often each is wrong.

    python benchmarks/conditioning_dropout.py RUN/bundle DATASET [--split validation] [--passes 5]

The bundle must have been trained with dropout. Labels are predicted as Stage 2 does it: with dropout in encoder and
decoder (`conditioning_dropout = true`, as the authors' code), and without. What each costs is measured by training.py.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.method.prompts import body
from reason2decide.model.architectures.kinds import architecture_of
from reason2decide.model.bundle import load_bundle
from reason2decide.model.label_scores import leading_labels, score_labels
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.training.base import has_dropout
from reason2decide.training.dropout import FastDropout

BATCH = 32


@torch.no_grad()
def predicted(
    model: torch.nn.Module, encoder: PromptEncoder, records: list[Record], labels: tuple[str, ...]
) -> list[str]:
    found: list[str] = []
    for begin in range(0, len(records), BATCH):
        part = records[begin : begin + BATCH]
        texts = encoder.text_ids([body(record.text, record.choices) for record in part])
        prompts = [encoder.decide(ids) for ids in texts]
        architecture = architecture_of(model, encoder.tokenizer.pad_token_id)
        reading = architecture.read([prompt.text for prompt in prompts])
        choices = [record.choices or labels for record in part]
        candidates = [encoder.candidates(own) for own in choices]
        scores = score_labels(architecture, reading, [prompt.lead for prompt in prompts], candidates)
        leading = leading_labels(scores)()
        found += [own[leader.best] for own, leader in zip(choices, leading, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--passes", type=int, default=5, help="predictions with dropout, each with its own masks")
    args = parser.parse_args()
    bundle, dataset = load_bundle(args.bundle), DatasetFolder.open(args.dataset)
    model, records = bundle.model, list(dataset.split(args.split))
    assert has_dropout(model), "this bundle's model has no dropout; train one with dropout first"
    model.set_attn_implementation("eager")
    gold, labels = [record.label for record in records], dataset.info.labels.values

    def differing(one: list[str], other: list[str | None]) -> float:
        return sum(a != b for a, b in zip(one, other, strict=True)) / len(records)

    still = predicted(model.eval(), bundle.encoder, records, labels)
    model.train()
    passes = []
    for seed in range(args.passes):
        torch.manual_seed(seed)
        with FastDropout():
            passes.append(predicted(model, bundle.encoder, records, labels))

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%} over {len(values)} passes)"

    print(f"{len(records)} records of {args.split}; y^ is not y*: without dropout {differing(still, gold):.1%},")
    print(f"with dropout {spread([differing(one, gold) for one in passes])}")
    print(f"the two differ for {spread([differing(one, list(still)) for one in passes])} of the records")


if __name__ == "__main__":
    main()
