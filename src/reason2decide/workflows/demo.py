"""`r2d demo`: synthetic calls, a small model whose reasons follow its decisions, and three calls decided on screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reason2decide.console import say, visible
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import SYNTHETIC_NOTICE, synthesize_calls
from reason2decide.evaluation.settings import Settings
from reason2decide.files import require_absent
from reason2decide.model.predictor import Predictor
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train
from reason2decide.workflows.evaluate import evaluate_bundle

# Ours, found by trial on two cores (docs/results.md); a base of millions of parameters needs the paper's settings.
TRAINING_CALLS = 12_000
SETTINGS = {
    "method": "r2d-contrast-posterior",
    "base": "tiny",
    "rationale_source": "llm",
    "steps": {"stage1": 1200, "stage2": 3600},
    "learning_rate": {"stage1": 1.5e-3, "stage2": 7e-4},
    "evaluate_every": 400,
    "lengths": {"input": 256, "rationale": 112},
}

SHOWN = (
    "macro_f1",
    "under_triage",
    "bleu",
    "simulated_consistency_no_verdict",
    "swap_follows_no_verdict",
    "cited_false",
)
QUEUED_CALLS = 20  # ours: in the queue of the review pages
PROBED_CALLS = 100  # ours: number of calls to probe, which keeps the demo short

CALLS = (
    "34 yo F calls about sore throat for 3 days. it is mild. pt denies trouble breathing. drinks enough water and tea.",
    "29 yo F c/o watery diarrhea x 3 d. now very severe. no black stools. drinks enough water and tea today.",
    "2 mo F with fever since last night. it is mild. no seizure. drinks enough milk and water today.",
)


def demo(out: Path, *, force: bool = False) -> None:
    """Make synthetic calls, train, evaluate, report and decide, all within the folder `out`.

    Raises:
        OutputError: `out` exists and `force` is false.
    """
    started = time.monotonic()
    require_absent(out, force=force)
    say(SYNTHETIC_NOTICE)
    dataset = synthesize_calls(out / "dataset", train=TRAINING_CALLS, force=force)
    config = parse_config({**SETTINGS, "dataset": str(dataset.path)}, "the demo's configuration")
    bundle = train(config, out / "run", force=force)
    settings = Settings(slices=("sex", "age_years:18,65", "unseen_combination"), probed=PROBED_CALLS)
    results = evaluate_bundle(bundle, dataset.path, out / "results", settings, force=force)
    predictor = Predictor.load(bundle)
    calls = [Record(str(i), text) for i, text in enumerate(CALLS, 1)]
    predictions = list(predictor.predict(calls))
    others = [_runner_up(prediction) for prediction in predictions]
    cases_for = predictor.rationales(calls, others)
    console = Console(highlight=False)
    for name in SHOWN:
        metric = results.metrics[name]
        assert metric.value is not None
        console.print(f"{name:<32} {metric.value:.3f}  (95 % interval {metric.low:.3f} to {metric.high:.3f})")
    for text, prediction, other, reason in zip(CALLS, predictions, others, cases_for, strict=True):
        assert prediction.probabilities is not None
        console.print(f"\ncall      {visible(text)}", markup=False)
        console.print(
            f"decision  {prediction.predicted_label} ({prediction.probabilities[prediction.predicted_label]:.0%})"
        )
        console.print(f"reason    {visible(prediction.rationale or '')}", markup=False)
        console.print(f"the case for {other!r}\n          {visible(reason)}", markup=False)
    minutes = (time.monotonic() - started) / 60
    console.print(f"\nreport    {out / 'results' / 'report.html'}  ({minutes:.1f} minutes in all)")
    r2d, model, reviews, queue = sys.argv[0], out / "model", out / "reviews.sqlite", out / "queue.jsonl"
    write_queue(dataset.split("test"), queue)
    for what, command in (
        ("serve", f"{r2d} export {bundle} --out {model} && {r2d} serve demo={model}"),
        (
            "review",
            f"{r2d} feedback add-reviewer {reviews} me; {r2d} serve demo={bundle} --review {reviews} --queue {queue}",
        ),
    ):
        console.print(f"{what:<9} {command}", markup=False, soft_wrap=True)


def write_queue(records: Sequence[Record], path: Path) -> None:
    """Write the first calls of a split without their labels, to be reviewed on the page."""
    calls = (Record(own.id, own.text).to_json() for own in records[:QUEUED_CALLS])
    path.write_text("".join(f"{json.dumps(call, ensure_ascii=False)}\n" for call in calls), "utf-8")


def _runner_up(prediction: Prediction) -> str:
    """The label that the model holds for second best."""
    probabilities = dict(prediction.probabilities or {})
    del probabilities[prediction.predicted_label]
    return max(probabilities, key=probabilities.__getitem__)
