"""What every model here must beat: readers without a network on a dataset's splits.

    python benchmarks/yardsticks.py DATASET [--source llm] [--out FILE]

Decisions: always the commonest label; a logistic regression on 1-2-grams; the same after one regular expression has
taken out what follows a denial, a relative or a mention of the past, up to the end of the sentence. Of six settings,
that best on validation is shown, and the best *on the test split*: an upper bound of what such a regression could
claim. Macro-F1 is over the declared label set.

Reasons: that of the training record whose text is nearest (cosine of TF-IDF), copied; and the share of test rationales
that stand word for word in training.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np
import sacrebleu
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction, write_predictions

# Begins a stretch that is not the patient's own now, or stands at the end of a sentence that is not.
NOT_NOW = re.compile(
    r"\b(?:no|not|denies|without|stopped|cousin|neighbor|friend|relative|roommate|sibling|baby)\b"
    r"|^(?=.*(?:denied|says no|gone|ruled out|years ago|last year))",
    re.I,
)


def patients_own(text: str) -> str:
    """The text without what follows a cue in its sentence."""
    kept = []
    for sentence in text.split(". "):
        cue = NOT_NOW.search(sentence)
        kept.append(sentence[: cue.start()] if cue else sentence)
    return ". ".join(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--source", default="llm")
    parser.add_argument("--out", type=Path, help="predictions.jsonl of the regression that reads negation, on test")
    args = parser.parse_args()
    dataset = DatasetFolder.open(args.dataset)
    labels = list(dataset.info.labels.values)
    splits = {name: list(dataset.split(name)) for name in ("train", "validation", "test")}
    gold = {name: [record.label for record in records] for name, records in splits.items()}

    def show(name: str, predicted: dict[str, list[str]], remark: str = "") -> tuple[float, float]:
        validation, test = (
            f1_score(gold[split], predicted[split], labels=labels, average="macro", zero_division=0)
            for split in ("validation", "test")
        )
        if remark:
            accuracy = accuracy_score(gold["test"], predicted["test"])
            print(f"{name:<28} macro-F1 {test:.3f}, accuracy {accuracy:.3f} on test{remark}")
        return validation, test

    commonest = Counter(gold["train"]).most_common(1)[0][0]
    show("always the commonest label", {name: [commonest] * len(members) for name, members in gold.items()}, ".")
    for name, reading in (("bag of words", str), ("bag of words, negation", patients_own)):
        tried = []
        for kind, words in (
            ("TF-IDF", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("presence", CountVectorizer(ngram_range=(1, 2), binary=True)),
        ):
            texts = {split: [reading(record.text) for record in records] for split, records in splits.items()}
            features = {"train": words.fit_transform(texts["train"])}
            features |= {split: words.transform(texts[split]) for split in ("validation", "test")}
            for strength in (0.3, 1, 4):
                model = LogisticRegression(C=strength, max_iter=2000).fit(features["train"], gold["train"])
                predicted = {split: model.predict(features[split]).tolist() for split in ("validation", "test")}
                tried.append((*show(name, predicted), f"{kind}, C = {strength}", predicted))
        chosen = max(tried, key=lambda one: one[0])
        if args.out is not None and reading is patients_own:
            pairs = zip(splits["test"], chosen[3]["test"], strict=True)
            write_predictions(args.out, (Prediction(record.id, label) for record, label in pairs))
        show(name, chosen[3], f" ({chosen[2]}, best on validation; best on test {max(one[1] for one in tried):.3f})")
    explained = {name: [r for r in records if args.source in r.rationales] for name, records in splits.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = words.fit_transform(record.text for record in explained["train"])
    nearest = np.asarray((words.transform(r.text for r in explained["test"]) @ known.T).argmax(axis=1)).ravel()
    copied = [explained["train"][i].rationales[args.source] for i in nearest]
    gold_reasons = [record.rationales[args.source] for record in explained["test"]]
    learnt = {record.rationales[args.source] for record in explained["train"]}
    verbatim = sum(reason in learnt for reason in gold_reasons) / len(gold_reasons)
    print(f"nearest reason, copied       BLEU {sacrebleu.corpus_bleu(copied, [gold_reasons]).score:.1f}")
    print(f"test reasons that stand word for word in training: {verbatim:.1%}")


if __name__ == "__main__":
    main()
