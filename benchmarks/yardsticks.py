"""The yardstick every model here must face: a bag-of-words logistic regression on a dataset's splits.

    python benchmarks/bag_of_words.py DATASET

Macro-F1 is over the declared label set. The best of several settings *on the test split* is printed too: an upper
bound of what such a regression could claim.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from reason2decide.data.records import DatasetFolder


def main() -> None:
    dataset = DatasetFolder.open(Path(sys.argv[1]))
    labels = list(dataset.info.labels.values)
    split = {name: list(dataset.split(name)) for name in ("train", "validation", "test")}
    gold = {name: [record.label for record in records] for name, records in split.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = {"train": words.fit_transform(record.text for record in split["train"])}
    features |= {name: words.transform(record.text for record in split[name]) for name in ("validation", "test")}
    rows = []
    for strength in (1, 4, 16):
        for weight in (None, "balanced"):
            model = LogisticRegression(C=strength, class_weight=weight, max_iter=2000)
            model.fit(features["train"], gold["train"])
            predicted = {name: model.predict(features[name]) for name in ("validation", "test")}
            scores = {
                name: f1_score(gold[name], own, labels=labels, average="macro", zero_division=0)
                for name, own in predicted.items()
            }
            accuracy = accuracy_score(gold["test"], predicted["test"])
            rows.append((scores["validation"], scores["test"], accuracy, f"C = {strength}, weights {weight}"))
            print(f"{rows[-1][3]:<28} macro-F1 test {scores['test']:.3f}, accuracy test {accuracy:.3f}")
    chosen = max(rows)
    print(f"chosen on validation: {chosen[3]}: macro-F1 {chosen[1]:.3f}, accuracy {chosen[2]:.3f}")
    print(f"best on test, whatever the setting: macro-F1 {max(row[1] for row in rows):.3f}")


if __name__ == "__main__":
    main()
