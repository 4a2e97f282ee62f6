"""The result of training: one folder that holds all it takes to decide and explain, and how it came to be.

    bundle/
      manifest.json        what `Manifest` says, and the SHA-256 of every other file
      config.toml          the training configuration, defaults included
      training_log.jsonl   losses, schedules and validations of every stage
      README.md            the model card
      model/               safetensors weights, model configuration, tokenizer

Loading executes nothing from the folder: safetensors and JSON only, each file with the hash it had when saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reason2decide.calibration import Calibration
from reason2decide.config import Lengths
from reason2decide.errors import BundleError, DataError, require
from reason2decide.files import new_folder, sha256_file
from reason2decide.methods import METHODS, Explain
from reason2decide.model_card import model_card
from reason2decide.prompts import PROMPT_VERSION
from reason2decide.records import LabelSet
from reason2decide.run_log import read_rows, write_summary

if TYPE_CHECKING:
    from reason2decide.features import PromptEncoder

BUNDLE_FORMAT = 2
MANIFEST, CALIBRATION = "manifest.json", "calibration.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    `training` has for each stage its best step and value; `dataset` the name and file hashes of the training data.
    `engine` is None where torch runs it; an export's has the weight type and the measured parity (`export.py`).
    """

    method: str
    base: str
    labels: LabelSet
    lengths: Lengths
    rationale_sources: Mapping[str, str]
    dataset: Mapping[str, Any]
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    engine: Mapping[str, Any] | None = None
    prompt_version: int = PROMPT_VERSION
    bundle_format: int = BUNDLE_FORMAT

    @property
    def explain(self) -> Explain:
        """How the model is asked for a rationale."""
        return METHODS[self.method].explain

    @property
    def rationale_source(self) -> str | None:
        """The source of the last stage: whose rationales the finished model writes like."""
        return list(self.rationale_sources.values())[-1] if self.rationale_sources else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lengths": self.lengths.model_dump()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        labels = value["labels"]
        return cls(
            **{
                **value,
                "labels": LabelSet(tuple(labels["values"]), labels["ordinal"], labels["urgent"]),
                "lengths": Lengths(**value["lengths"]),
            }
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle or export without its model: the manifest, what turns text into tokens, and the calibration."""

    path: Path
    manifest: Manifest
    calibration: Calibration
    encoder: PromptEncoder


@dataclass(frozen=True)
class ModelBundle(Bundle):
    """A loaded bundle, its model in float32 and evaluation mode."""

    model: Any


def save_bundle(
    out: Path,
    manifest: Manifest,
    model: Any,
    tokenizer: Any,
    calibration: Calibration,
    *,
    config_toml: str,
    training_log: Path,
) -> None:
    """Write a bundle, complete or not at all, in place of one that stands there."""
    with new_folder(out, MANIFEST, force=True) as folder:
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / CALIBRATION).write_text(json.dumps(calibration.to_json()), "utf-8")
        (folder / "config.toml").write_text(config_toml, "utf-8")
        write_summary(folder / "training_log.jsonl", read_rows(training_log))
        (folder / "README.md").write_text(model_card(manifest), "utf-8")
        write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a complete folder, with the hash of every other file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    content = {**manifest.to_json(), "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest and check that its files are those it was saved with.

    Raises:
        BundleError: no bundle, of another version, with a pickle in it, or with a file missing, added or altered.
    """
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder; expected a bundle, which `r2d train` writes at RUN/bundle")
    if not manifest_path.is_file():
        hint = f"; did you mean {path / 'bundle'}?" if (path / "bundle").is_dir() else ""
        raise BundleError(f"{path} is not a bundle: it has no manifest.json{hint}")
    try:
        content = json.loads(manifest_path.read_text("utf-8"))
        expected = dict(content.pop("files"))
        found_format, found_prompts = content["bundle_format"], content["prompt_version"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{manifest_path} is not the manifest of a bundle; train the model again") from None
    if found_format != BUNDLE_FORMAT:
        raise BundleError(
            f"{path} has bundle format {found_format}, this program reads {BUNDLE_FORMAT}; "
            "use the version of reason2decide that wrote it, or train again"
        )
    if found_prompts != PROMPT_VERSION:
        raise BundleError(
            f"{path} was trained with prompt version {found_prompts}, this program asks with version {PROMPT_VERSION}, "
            "which the model has never seen; use the version of reason2decide that wrote it, or train again"
        )
    _require_intact(path, expected)
    try:
        manifest = Manifest.from_json(content)
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise BundleError(f"{manifest_path} is not the manifest of a bundle ({error}); train the model again") from None
    if manifest.method not in METHODS:
        raise BundleError(f"{path} was trained by the method {manifest.method!r}, which this program does not know")
    return manifest


def load_bundle(path: Path, manifest: Manifest | None = None) -> ModelBundle:
    """Load a bundle's model and tokenizer; `manifest` is its own where that was read and checked already.

    Raises:
        BundleError: as `read_manifest`, or it is an export, which has no model for torch.
        MissingExtraError: torch or transformers is not installed.
    """
    manifest = manifest or read_manifest(path)
    if manifest.engine is not None:
        raise BundleError(f"{path} is an export for {manifest.engine['name']}; give the bundle that it was made of")
    torch = require("torch", "train")
    transformers = require("transformers", "train")
    from reason2decide.base import silence_transformers
    from reason2decide.features import PromptEncoder

    silence_transformers()

    folder = path / "model"
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign folder makes the library raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"the model of {path} cannot be loaded: {reason}") from None
    encoder = PromptEncoder(tokenizer, manifest.lengths)
    return ModelBundle(path, manifest, _calibration(path), encoder, model.eval())


def load_export(path: Path, manifest: Manifest) -> Bundle:
    """Load an export but for its graphs, without torch or transformers; `manifest` is its own, read and checked.

    Raises:
        BundleError: its tokenizer is damaged.
        MissingExtraError: the package tokenizers is not installed.
    """
    from reason2decide.features import PromptEncoder
    from reason2decide.plain_tokenizer import PlainTokenizer

    encoder = PromptEncoder(PlainTokenizer(path / "model"), manifest.lengths)
    return Bundle(path, manifest, _calibration(path), encoder)


def _calibration(path: Path) -> Calibration:
    return Calibration.from_json(json.loads((path / CALIBRATION).read_text("utf-8")))


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a bundle's training log."""
    lines = (path / "training_log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _require_intact(path: Path, expected: Mapping[str, str]) -> None:
    # Hidden files (a file browser's) are never read, so they may stand there.
    files = (item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
    present = {item.relative_to(path).as_posix() for item in files} - {MANIFEST}
    pickles = sorted(name for name in present if Path(name).suffix in PICKLES)
    if pickles:
        raise BundleError(f"{path} holds {pickles[0]}, which may run code when read; bundles are safetensors and JSON")
    for name in sorted(set(expected) - present):
        raise BundleError(f"{path} lacks {name}, which its manifest lists; copy the bundle again, whole")
    for name in sorted(present - set(expected)):
        raise BundleError(f"{path} holds {name}, which its manifest does not list; remove it or copy the bundle again")
    for name, digest in expected.items():
        if sha256_file(path / name) != digest:
            raise BundleError(f"{path / name} was altered after the bundle was saved (other SHA-256); copy it again")
