"""An encoder-decoder that can copy: the decoder of a warm-started base learns to restore the texts of a dataset.

    python benchmarks/public_reasons.py base runs/cqa runs/cqa-encoder
    python benchmarks/restoring_base.py runs/cqa runs/cqa-encoder runs/cqa-base

In the decoder of a warm-started encoder the attention to the text is new. Labels common to all records are learnt all
the same; a record's own choices must be copied from the text, and hundreds of steps do not teach that. Here the
decoder restores each text of the training split, its choices included, of which 30 % of the word pieces are masked. It
sees no label and no rationale. The encoder stays as it is. Prints the share of word pieces that it gives right in the
validation split: of those shown, and of those masked.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.method.prompts import body
from reason2decide.training.encoders import from_encoder

AT_ONCE, LONGEST, MASKED, IGNORED = 16, 96, 0.3, -100


class Restoring:
    """Restores masked texts; a batch of n texts of t word pieces is told by (n, t) ids."""

    def __init__(self, encoder: str) -> None:
        self.model, self.tokenizer = from_encoder(encoder, seed=0)
        self.model.get_encoder().requires_grad_(False)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]

    def ids(self, dataset: DatasetFolder, split: str) -> list[list[int]]:
        """The word pieces of each text with its choices, as prompts have them."""
        texts = [body(record.text, record.choices) for record in dataset.split(split)]
        return [self.tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in texts]

    def restored(self, rows: list[list[int]], draws: torch.Generator) -> tuple[Any, Any, Any]:
        """Logits of each word piece after the first, (n, t - 1, pieces); the pieces; and which of them were masked."""
        tokenizer = self.tokenizer
        whole = pad_sequence([torch.tensor(row) for row in rows], True, tokenizer.pad_token_id)
        there = whole != tokenizer.pad_token_id
        ends = (whole == tokenizer.cls_token_id) | (whole == tokenizer.sep_token_id)
        masked = (torch.rand(whole.shape, generator=draws) < MASKED) & there & ~ends
        wanted = whole[:, 1:]
        start = torch.full((len(rows), 1), self.model.config.decoder_start_token_id)
        logits = self.model(
            input_ids=whole.masked_fill(masked, tokenizer.mask_token_id),
            attention_mask=there.long(),
            decoder_input_ids=torch.cat([start, wanted[:, :-1]], 1),
        ).logits
        return logits, wanted.masked_fill(~there[:, 1:], IGNORED), masked[:, 1:]

    @torch.no_grad()
    def shares(self, rows: list[list[int]]) -> tuple[float, float]:
        """Share of word pieces restored: of those shown, and of those masked."""
        self.model.eval()
        logits, wanted, masked = self.restored(rows, torch.Generator().manual_seed(1))
        right, real = logits.argmax(-1) == wanted, wanted != IGNORED
        return float(right[real & ~masked].float().mean()), float(right[real & masked].float().mean())


def batches(rows: list[list[int]]) -> list[list[int]]:
    """Positions of texts of about equal length, in an order drawn anew."""
    near = sorted(range(len(rows)), key=lambda i: len(rows[i]) + random.random() * 4)
    drawn = [near[i : i + AT_ONCE] for i in range(0, len(near) - AT_ONCE + 1, AT_ONCE)]
    random.shuffle(drawn)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    restoring, dataset, draws = Restoring(args.encoder), DatasetFolder.open(args.dataset), torch.Generator()
    train, validation = restoring.ids(dataset, "train"), restoring.ids(dataset, "validation")[:128]
    draws.manual_seed(0)
    optimizer = torch.optim.AdamW(restoring.trained, lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, max(0.02, 1 - step / args.steps))
    )
    started, order = time.perf_counter(), batches(train)
    for step in range(1, args.steps + 1):
        restoring.model.train()
        logits, wanted, _ = restoring.restored([train[i] for i in order.pop()], draws)
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(restoring.trained, 1.0)
        optimizer.step()
        schedule.step()
        order = order or batches(train)
        if step % 100 == 0 or step == args.steps:
            shown, masked = restoring.shares(validation)
            seconds = time.perf_counter() - started
            print(f"{step} steps, {seconds:.0f} s: {shown:.3f} of shown, {masked:.3f} of masked pieces", flush=True)
    restoring.model.save_pretrained(args.out)
    restoring.tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
