"""The manifest of a bundle or export, and the check that its files are unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reason2decide.data.records import LabelSet
from reason2decide.errors import BundleError, DataError
from reason2decide.files import sha256_file
from reason2decide.method.methods import METHODS, Explain
from reason2decide.method.prompts import PROMPT_VERSION
from reason2decide.model.prompt_encoder import Lengths

BUNDLE_FORMAT = 2
MANIFEST = "manifest.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle.

    `training` has the best step and value of each stage; `dataset` the name and file hashes of the training data.
    `engine` is None where torch runs it; for an export it has the weight type and the parity (`export/bundle.py`).
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
        """How the model is prompted for a rationale."""
        return METHODS[self.method].explain

    @property
    def rationale_source(self) -> str | None:
        """The source of the last stage, whose rationales the finished model imitates."""
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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a complete folder, with the hash of every other file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    content = {**manifest.to_json(), "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest and check that its files are unchanged.

    Raises:
        BundleError: not a bundle, from another version, with a pickle in it, or with a file missing, added or altered.
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
            f"{path} was trained with prompt version {found_prompts}, this program uses version {PROMPT_VERSION}, "
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


def _require_intact(path: Path, expected: Mapping[str, str]) -> None:
    # Hidden files (from a file browser) are never read, so they are allowed.
    files = (item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
    present = {item.relative_to(path).as_posix() for item in files} - {MANIFEST}
    pickles = sorted(name for name in present if Path(name).suffix in PICKLES)
    if pickles:
        raise BundleError(
            f"{path} contains {pickles[0]}, which may run code when read; bundles are safetensors and JSON"
        )
    for name in sorted(set(expected) - present):
        raise BundleError(f"{path} lacks {name}, which its manifest lists; copy the whole bundle again")
    for name in sorted(present - set(expected)):
        raise BundleError(
            f"{path} contains {name}, which its manifest does not list; remove it or copy the bundle again"
        )
    for name, digest in expected.items():
        if sha256_file(path / name) != digest:
            raise BundleError(
                f"{path / name} was altered after the bundle was saved (its SHA-256 differs); copy it again"
            )
