"""Writes the result of training: a bundle, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reason2decide.files import new_folder
from reason2decide.model.bundle import CALIBRATION
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import MANIFEST, Manifest, write_manifest
from reason2decide.model.reason_reader import FILE as READER
from reason2decide.model.reason_reader import ReasonReader
from reason2decide.report.model_card import model_card
from reason2decide.training.run_log import read_rows, write_summary


def save_bundle(
    out: Path,
    manifest: Manifest,
    model: Any,
    tokenizer: Any,
    calibration: Calibration,
    *,
    reader: ReasonReader | None = None,
    config_toml: str,
    training_log: Path,
) -> None:
    """Write a bundle, complete or not at all, replacing an existing one."""
    with new_folder(out, MANIFEST, force=True) as folder:
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / CALIBRATION).write_text(json.dumps(calibration.to_json()), "utf-8")
        if reader is not None:
            (folder / READER).write_text(json.dumps(reader.to_json()), "utf-8")
        (folder / "config.toml").write_text(config_toml, "utf-8")
        write_summary(folder / "training_log.jsonl", read_rows(training_log))
        (folder / "README.md").write_text(model_card(manifest), "utf-8")
        write_manifest(folder, manifest)
