"""`r2d export`: a bundle as ONNX graphs that serve without torch, and how close they stay to the bundle.

EXPORT/
  manifest.json     the bundle's own, with `engine`: the weight type and the measured parity; the hash of every file
  calibration.json, config.toml, training_log.jsonl, README.md     as in the bundle
  model/            encoder.onnx, decoder.onnx, engine.json, tokenizer.json, special_tokens.json

Parity is measured on the validation split, which thresholds and temperature come from too: what an export changes
there, it would change in use.
"""

from __future__ import annotations

import math
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reason2decide.console import say, track, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import BundleError, DataError
from reason2decide.evaluation.measure import Origin, evaluate
from reason2decide.evaluation.settings import Settings
from reason2decide.files import new_folder, require_absent
from reason2decide.model.bundle import CALIBRATION, load_bundle
from reason2decide.model.manifest import MANIFEST, write_manifest
from reason2decide.model.plain_tokenizer import PlainTokenizer, save_plain_tokenizer
from reason2decide.model.predictor import Predictor
from reason2decide.model.reason_reader import FILE as READER
from reason2decide.report.model_card import model_card

PARITY_RECORDS = 500  # ours: of the validation split; a flip rate of 0.5 % is then two or three records
# The bounds beyond which an export warns (ours), and names the next more exact weights.
LARGEST_ERROR = 1e-4  # of a float32 log-probability
LARGEST_FLIPS = 0.005
LARGEST_F1_LOSS = 0.005
LARGEST_BLEU_LOSS = 1.0


@dataclass(frozen=True)
class Parity:
    """An export compared with its bundle on `records` validation records.

    `log_prob_error` is the largest difference of a label's log-probability among the candidates, `flips` the share of
    labels that changed, the losses are the bundle's value minus the export's (None where the metric is not defined).
    """

    records: int
    log_prob_error: float
    flips: float
    macro_f1_loss: float | None
    bleu_loss: float | None

    def problems(self, exact: bool) -> list[str]:
        """Describe every value that is over its bound."""
        found = []
        if exact and self.log_prob_error > LARGEST_ERROR:
            found.append(f"log-probabilities differ by up to {self.log_prob_error:.2g}, over {LARGEST_ERROR:g}")
        if self.flips > LARGEST_FLIPS:
            found.append(f"{self.flips:.1%} of the labels changed, over {LARGEST_FLIPS:.1%}")
        if self.macro_f1_loss is not None and self.macro_f1_loss > LARGEST_F1_LOSS:
            found.append(f"macro-F1 fell by {self.macro_f1_loss:.4f}, over {LARGEST_F1_LOSS:g}")
        if self.bleu_loss is not None and self.bleu_loss > LARGEST_BLEU_LOSS:
            found.append(f"BLEU fell by {self.bleu_loss:.2f}, over {LARGEST_BLEU_LOSS:g}")
        return found


def export_bundle(
    bundle: Path, out: Path, weights: str = "float32", *, dataset: Path | None = None, force: bool = False
) -> Parity:
    """Write an export of a bundle into the folder `out`; return its measured parity.

    Args:
        weights: a key of `export_graphs.WEIGHTS`.
        dataset: the dataset the bundle was trained on; None looks where it was then.

    Raises:
        BundleError, BaseModelError, MissingExtraError: the bundle, or its architecture, cannot be exported.
        DataError: the dataset is missing, or not the one that the bundle was trained on.
        OutputError: `out` exists and `force` is false.
    """
    require_absent(out, MANIFEST, force=force)
    loaded = load_bundle(bundle)
    records = _validation(loaded.manifest.dataset, bundle, dataset)
    from reason2decide.export.graphs import WEIGHTS, export_graphs

    with new_folder(out, MANIFEST, force=force) as folder:
        model = folder / "model"
        model.mkdir()
        say(f"exporting {bundle} with {weights} weights")
        export_graphs(loaded.model, loaded.encoder.tokenizer, model, weights)
        save_plain_tokenizer(loaded.encoder.tokenizer, model)
        _require_same_tokens(loaded.encoder.tokenizer, PlainTokenizer(model), records)
        for name in (CALIBRATION, READER, "config.toml", "training_log.jsonl"):
            if (bundle / name).is_file():  # a model that writes no reasons has no reader of them
                shutil.copy(bundle / name, folder / name)
        # A manifest without parity first: the export is loaded like any other to measure it.
        write_manifest(folder, replace(loaded.manifest, engine={"name": "onnx", "weights": weights}))
        parity = _parity(Predictor.load(bundle), Predictor.load(folder), records)
        manifest = replace(loaded.manifest, engine={"name": "onnx", "weights": weights, "parity": asdict(parity)})
        (folder / "README.md").write_text(model_card(manifest), "utf-8")
        write_manifest(folder, manifest)
    problems = parity.problems(exact=weights == "float32")
    if problems:
        better = list(WEIGHTS)[list(WEIGHTS).index(weights) + 1 :]
        hint = f"; try --weights {better[0]}" if better else "; serve the bundle itself with torch"
        warn(f"{out}: {'; '.join(problems)}{hint}")
    say(f"export: {out} ({sum(file.stat().st_size for file in out.rglob('*') if file.is_file()) / 2**20:.0f} MiB)")
    return parity


def _validation(trained_on: Mapping[str, Any], bundle: Path, path: Path | None) -> tuple[DatasetFolder, list[Record]]:
    """The dataset a bundle was trained on, and the records of its validation split that parity is measured on."""
    if path is None:
        path = Path(tomllib.loads((bundle / "config.toml").read_text("utf-8"))["dataset"])
        if not path.is_dir():
            raise DataError(
                f"the dataset {path}, which {bundle} was trained on, is missing; give its path with --dataset"
            )
    dataset = DatasetFolder.open(path)
    dataset.verify()
    if dataset.hashes.get("validation") != trained_on["sha256"]["validation"]:
        raise DataError(
            f"{path} is not the dataset that {bundle} was trained on (the SHA-256 of its validation split differs); "
            "give the path of that one with --dataset"
        )
    split = dataset.split("validation")
    step = max(1, len(split) // PARITY_RECORDS)
    return dataset, list(split[::step])[:PARITY_RECORDS]


def _require_same_tokens(original: Any, plain: PlainTokenizer, data: tuple[DatasetFolder, list[Record]]) -> None:
    texts = [text for record in data[1] for text in (record.text, *record.rationales.values())]
    expected = original(texts, add_special_tokens=False, verbose=False)["input_ids"]
    same = plain(texts, add_special_tokens=False)["input_ids"] == expected and all(
        plain.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
        for ids in expected
    )
    if not same:
        raise BundleError(
            "the tokenizer of this bundle does more than its tokenizer.json says, so an export would read or write "
            "other texts; serve the bundle itself"
        )


def _parity(torch_engine: Predictor, exported: Predictor, data: tuple[DatasetFolder, list[Record]]) -> Parity:
    dataset, records = data
    source = torch_engine.bundle.manifest.rationale_source
    origin = Origin(dataset.info.name, dataset.hashes["validation"], "validation")
    labels, log_probs, metrics = [], [], []
    for name, engine in (("bundle", torch_engine), ("export", exported)):
        predictions = list(track(engine.predict(records), f"parity, {name}", len(records)))
        labels.append([prediction.predicted_label for prediction in predictions])
        raw = engine.distributions(records, calibrated=False)
        log_probs.append([math.log(max(p, sys.float_info.min)) for distribution in raw for p in distribution.values()])
        settings = Settings(rationale_source=source, resamples=1)
        metrics.append(evaluate(predictions, records, dataset.info.labels, origin, settings).results.metrics)

    def loss(name: str) -> float | None:
        before, after = (values[name].value for values in metrics)
        return None if before is None or after is None else before - after

    return Parity(
        len(records),
        max(abs(a - b) for a, b in zip(*log_probs, strict=True)),
        sum(a != b for a, b in zip(*labels, strict=True)) / len(records),
        loss("macro_f1"),
        loss("bleu"),
    )
