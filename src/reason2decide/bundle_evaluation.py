"""A bundle on a split of a dataset: predict, measure, report."""

from __future__ import annotations

import json
from pathlib import Path

from reason2decide.bundle import Manifest, read_training_log
from reason2decide.console import say, track, warn
from reason2decide.errors import DataError
from reason2decide.evaluation import Results, evaluate
from reason2decide.files import new_folder, require_absent
from reason2decide.predictor import Predictor
from reason2decide.records import Dataset
from reason2decide.report import render_report
from reason2decide.statistics import RESAMPLES


def evaluate_bundle(
    bundle: Path,
    dataset_path: Path,
    out: Path,
    *,
    split: str = "test",
    rationale_source: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    force: bool = False,
) -> Results:
    """Write `predictions.jsonl`, `results.json` and `report.html` into the folder `out`.

    Args:
        rationale_source: whose rationales to compare with; None takes the source the model was last trained on.

    Raises:
        DataError: the dataset, its split, its labels or the source do not fit.
        BundleError: as `bundle.load_bundle`.
        OutputError: `out` exists and `force` is false.
    """
    require_absent(out, "results.json", force=force)
    dataset = Dataset.open(dataset_path)
    dataset.verify()
    records = dataset.split(split)
    predictor = Predictor.load(bundle)
    manifest = predictor.bundle.manifest
    _require_same_labels(manifest, dataset)
    source = _source(manifest, dataset, rationale_source)

    predictions = list(track(predictor.predict(records), f"deciding {split}", len(records)))
    if predictor.cut_texts.cut:
        warn(f"{predictor.cut_texts} texts were cut to the model's {manifest.lengths.input} tokens")
    results = evaluate(
        predictions,
        records,
        dataset.info.labels,
        rationale_source=source,
        split=split,
        dataset_name=dataset.info.name,
        dataset_sha256=dataset.hashes[split],
        resamples=resamples,
        seed=seed,
    )
    with new_folder(out, "results.json", force=force) as folder:
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as stream:
            for prediction in predictions:
                stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
        (folder / "results.json").write_text(json.dumps(results.to_json(), indent=2, ensure_ascii=False), "utf-8")
        html = render_report(
            results,
            records,
            predictions,
            rationale_source=source,
            training_log=read_training_log(bundle),
            title=f"{manifest.method} on {dataset.info.name}",
            description=_description(manifest),
        )
        (folder / "report.html").write_text(html, "utf-8")
    say(f"results: {out / 'results.json'}, report: {out / 'report.html'}")
    return results


def _require_same_labels(manifest: Manifest, dataset: Dataset) -> None:
    if manifest.labels.values != dataset.info.labels.values:
        raise DataError(
            f"the model decides between {list(manifest.labels.values)}, the dataset {dataset.path} between "
            f"{list(dataset.info.labels.values)}; evaluate on a dataset with the same labels in the same order"
        )


def _source(manifest: Manifest, dataset: Dataset, wanted: str | None) -> str | None:
    if wanted is not None:
        dataset.require_source(wanted)
        return wanted
    return manifest.rationale_source if manifest.rationale_source in dataset.info.rationale_sources else None


def _description(manifest: Manifest) -> dict[str, str]:
    sources = manifest.rationale_sources
    return {
        "Method": manifest.method,
        "Base": manifest.base,
        "Trained on": str(manifest.dataset["name"]),
        "Rationale sources": ", ".join(f"{stage}: {own}" for stage, own in sources.items()) or "none",
        "Created": manifest.created,
    }
