"""The result of training: one folder with all it takes to decide and explain, and how it was made.

    bundle/
      manifest.json        the `Manifest`, and the SHA-256 of every other file (`manifest.py`)
      calibration.json     temperature and validation outcomes (`calibration.py`)
      reason_reader.json   reads which label a reason argues for, if there were rationales to learn from
      config.toml          the training configuration, defaults included
      training_log.jsonl   losses, schedules and validations of every stage
      README.md            the model card
      model/               safetensors weights, model configuration, tokenizer

Loading executes nothing from the folder: safetensors and JSON only, each file checked against its saved hash. What is
loaded is a private copy, so that a folder overwritten while its model is in use changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reason2decide.errors import BundleError, require
from reason2decide.files import sha256_file
from reason2decide.model.calibration import Calibration
from reason2decide.model.hub import first_line, silence_transformers
from reason2decide.model.manifest import Manifest, altered, verified_copy
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.model.reason_reader import FILE as READER
from reason2decide.model.reason_reader import ReasonReader

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle or export without its model: manifest, calibration, prompt encoder, reader of reasons."""

    path: Path
    manifest: Manifest
    calibration: Calibration
    encoder: PromptEncoder
    reader: ReasonReader | None


@dataclass(frozen=True)
class ModelBundle(Bundle):
    """A loaded bundle, its model in float32 and evaluation mode."""

    model: Any


def load_bundle(path: Path) -> ModelBundle:
    """Load a bundle's model and tokenizer; raises as `bundle_from`, and as `verified_copy`."""
    with verified_copy(path) as (manifest, copy):
        return bundle_from(path, manifest, copy)


def bundle_from(path: Path, manifest: Manifest, copy: Path) -> ModelBundle:
    """Load a bundle's model and tokenizer from what `verified_copy` gave for `path`.

    Raises:
        BundleError: it is an export, which has no model for torch; a tensor is missing from its weights, or not finite.
        MissingExtraError: torch or transformers is not installed.
    """
    if manifest.engine is not None:
        raise BundleError(f"{path} is an export for {manifest.engine['name']}; give the bundle that it was made from")
    # Serving without torch takes an export.
    needed_by = f"{path} is a bundle, not an export (`r2d export` makes one, with torch installed), so it"
    torch = require("torch", "train", needed_by)
    transformers = require("transformers", "train", needed_by)

    from reason2decide.model.architectures.kinds import auto_class

    silence_transformers()
    folder = copy / "model"
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, loaded = auto_class(config).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a foreign folder can make the library raise anything
        raise BundleError(f"the model of {path} cannot be loaded: {first_line(error)}") from None
    for name in sorted(loaded["missing_keys"]):
        raise BundleError(f"the weights of {path} lack the tensor {name}; copy the bundle again")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BundleError(
                f"the weights of {path} are damaged: {name} has values that are not finite numbers; "
                "copy the bundle again, or train the model again"
            )
    encoder = PromptEncoder(tokenizer, manifest.lengths, manifest.prompt_form)
    return ModelBundle(path, manifest, _calibration(copy), encoder, _reader(path, copy), model.eval())


def export_from(path: Path, manifest: Manifest, copy: Path) -> Bundle:
    """Load an export except its graphs, without torch or transformers; arguments as `bundle_from`.

    Raises:
        BundleError: its tokenizer is damaged.
        MissingExtraError: the package tokenizers is not installed.
    """
    from reason2decide.model.plain_tokenizer import PlainTokenizer

    encoder = PromptEncoder(PlainTokenizer(copy / "model"), manifest.lengths, manifest.prompt_form)
    return Bundle(path, manifest, _calibration(copy), encoder, _reader(path, copy))


def read_calibration(path: Path, manifest: Manifest) -> Calibration:
    """The calibration of a bundle or an export, without its model.

    Raises:
        BundleError: the file was altered.
    """
    if sha256_file(path / CALIBRATION) != manifest.files[CALIBRATION]:
        raise altered(path / CALIBRATION)
    return _calibration(path)


def _calibration(path: Path) -> Calibration:
    return Calibration.from_json(json.loads((path / CALIBRATION).read_text("utf-8")))


def _reader(path: Path, copy: Path) -> ReasonReader | None:
    """The reader of reasons of `path`, from its copy; None if it has none."""
    if not (copy / READER).is_file():
        return None
    try:
        return ReasonReader.from_json(json.loads((copy / READER).read_text("utf-8")))
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{path / READER} is not what training writes; copy the bundle again") from None


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a bundle's training log."""
    lines = (path / "training_log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
