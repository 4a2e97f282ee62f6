"""`r2d export --transformers-decision`: a bundle as a decision model that `transformers` itself loads and serves.

EXPORT/
  model.safetensors, tokenizer   the bundle's own
  config.json                    the bundle's own, and what label scoring needs
  decision.json                  temperature and template, as the decision pipeline of transformers reads
  modeling_reason2decide.py      the code that scores the labels; transformers runs it, this package never does
  README.md, MODEL_CARD.md       how to load it and what that implies; the bundle's card

Probabilities only, calibrated as the bundle's are. The interface has no place for rationales: `r2d serve` gives both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reason2decide.console import say
from reason2decide.data.records import NO, YES
from reason2decide.errors import BundleError
from reason2decide.files import new_folder, require_absent, sha256_file
from reason2decide.model.bundle import ModelBundle, load_bundle

SOURCE = Path(__file__).parent / "transformers_decision"  # files to copy, never imported
CODE, DECISION = "modeling_reason2decide.py", "decision.json"
CLASSES = {  # of `CODE`, by the architecture's name in transformers
    "t5": "T5ForDecision",
    "mt5": "MT5ForDecision",
    "bart": "BartForDecision",
    "encoder-decoder": "EncoderDecoderForDecision",
}


def export_transformers_decision(bundle: Path, out: Path, *, force: bool = False) -> None:
    """Write a bundle as a folder that transformers 5.23 loads and serves as a decision model.

    Raises:
        BundleError: not a bundle, without its own labels, or of an architecture that has no class in `CLASSES`.
        DataError: two labels look the same to the tokenizer.
        OutputError: `out` exists and `force` is false, or it is not such a folder.
    """
    require_absent(out, DECISION, force=force)
    loaded = load_bundle(bundle)
    labels, kind = loaded.manifest.labels.values, loaded.model.config.model_type
    if not labels:
        raise BundleError(
            f"{bundle} has no label set: its records bring their choices, which a decision model of transformers "
            "cannot read from a request. Serve the bundle with `r2d serve`"
        )
    if kind not in CLASSES:
        raise BundleError(
            f"the model of {bundle} is a {kind}, which cannot be exported as a decision model of transformers; "
            f"expected one of {', '.join(CLASSES)}. Serve the bundle with `r2d serve`"
        )
    with new_folder(out, DECISION, force=force) as folder:
        shutil.copytree(bundle / "model", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["architectures"] = [CLASSES[kind]]
        config["auto_map"] = {"AutoModelForDecision": f"{Path(CODE).stem}.{CLASSES[kind]}"}
        config["reason2decide"] = _settings(loaded)
        _write_json(folder / "config.json", config)
        _write_json(folder / DECISION, _decision(labels, loaded.calibration.temperature))
        shutil.copyfile(SOURCE / CODE, folder / CODE)
        shutil.copyfile(bundle / "README.md", folder / "MODEL_CARD.md")
        (folder / "README.md").write_text(_readme(out, labels), "utf-8")
    say(f"export: {out}; its README.md says how transformers serves it, and that this runs the code in {CODE}")


def _settings(loaded: ModelBundle) -> dict[str, Any]:
    """What `CODE` scores with: see its docstring."""
    encoder, labels = loaded.encoder, loaded.manifest.labels
    prompt = encoder.decide([]).text
    end = len(prompt) - len(encoder.after)
    folded = {label.casefold(): label for label in labels.values}
    yes, no = (next((folded[word] for word in words if word in folded), None) for words in (YES, NO))
    return {
        "before": prompt[:end],
        "after": prompt[end:],
        "text_tokens": encoder.room(predict=True),
        "special_ids": sorted(set(encoder.tokenizer.all_special_ids) - {encoder.tokenizer.unk_token_id}),
        "labels": dict(zip(labels.values, map(list, encoder.candidates(labels.values)), strict=True)),
        "ordinal": labels.ordinal,
        "yes_no": {"true": yes, "false": no} if yes and no and len(labels.values) == 2 else None,
    }


def _decision(labels: Sequence[str], temperature: float) -> dict[str, Any]:
    """The content of `decision.json`, as `transformers.DecisionConfig` reads it."""
    return {
        # How many options a question may have; without them 26, the letters of the alphabet.
        "labels": {"choice": list(labels), "score": list(labels)},
        "temperature": dict.fromkeys(("choice", "score", "noul"), temperature),
        # Here rather than in a separate file, so that `--decision-config` of `transformers serve` finds it too.
        "chat_template": (SOURCE / "template.jinja").read_text("utf-8"),
        # A special token written in a text is left out (`CODE`), as in training, rather than spelt out.
        "sanitize_control_tokens": False,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _readme(out: Path, labels: Sequence[str]) -> str:
    name = out.name
    request = {
        "model": name,
        "state": "the text to decide on",
        "questions": {"decision": {"type": "choice", "criteria": dict.fromkeys(labels)}},
    }
    return f"""# A decision model for transformers

Exported by reason2decide for transformers 5.23 or newer (`pip install "transformers[serving]"`). It answers with a
calibrated probability for each of its labels, and writes no text: rationales come from `r2d serve`, on the bundle that
this was made from. MODEL_CARD.md says what the model is and is not for. A qualified person must verify every decision
before it touches care.

## It runs code from this folder
transformers has no class for this model, so it loads `{CODE}` from this folder and runs it, with the rights
of whoever starts it: that is what `trust_remote_code` allows. Read the file before you allow it; it is short, imports
torch and transformers only, and opens no file and no connection. Its SHA-256 as exported is

    {sha256_file(SOURCE / CODE)}

If yours differs, somebody changed the file. Without the permission the model does not load.

## Serve
From the parent folder of this one:

    transformers serve {name} --trust-remote-code --decision-config {name}/{DECISION}

`POST /v1/systemone` then takes:

    {json.dumps(request, ensure_ascii=False)}

## In Python
    from transformers import pipeline

    decide = pipeline("decision", model="{name}", trust_remote_code=True)
    decide({{"state": ..., "questions": ...}})

## What it answers
The model answers the one question that it was trained on: instructions and descriptions are not read. The options of a
`choice` are labels; if some are left out, the probabilities are renormalised over the others. A `score` question works
if the labels are ordered, with all of them as levels; a `noul` question if they are a yes and a no. Everything else is
refused.
"""
