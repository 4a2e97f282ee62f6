"""The manifest of a bundle or export, the check that its files are unchanged, and a private copy to load from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet
from reason2decide.errors import BundleError, DataError
from reason2decide.files import sha256_file
from reason2decide.method.methods import METHODS, Explain
from reason2decide.method.prompts import PAPER_FORM, PROMPT_VERSION, PromptForm
from reason2decide.model.prompt_encoder import Lengths

BUNDLE_FORMAT = 2
MANIFEST = "manifest.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle.

    `training` has the best step and value of each stage; `dataset` the name and file hashes of the training data.
    `prompt_form` is how its prompts are put together: a chat template is needed in training only.
    `recipe` is how the texts of its training data were made of rows, None if they came as they are.
    `engine` is None where torch runs it; for an export it has the weight type and the parity (`export/bundle.py`).
    `files` has the SHA-256 of every other file of the folder, and `sha256` that of the manifest file, which thus stands
    for all of them; both are empty until it is read from a file.
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
    recipe: InputRecipe | None = None
    prompt_version: int = PROMPT_VERSION
    prompt_form: PromptForm = PAPER_FORM
    bundle_format: int = BUNDLE_FORMAT
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    sha256: str = field(default="", compare=False)

    @property
    def explain(self) -> Explain:
        """How the model is prompted for a rationale."""
        return METHODS[self.method].explain

    @property
    def rationale_source(self) -> str | None:
        """The source of the last stage, whose rationales the finished model imitates."""
        return list(self.rationale_sources.values())[-1] if self.rationale_sources else None

    def to_json(self) -> dict[str, Any]:
        recipe = None if self.recipe is None else self.recipe.to_json()
        value = {**asdict(self), "lengths": self.lengths.model_dump(), "recipe": recipe}
        return {key: value[key] for key in value if key not in ("files", "sha256")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        labels = value["labels"]
        return cls(
            **{
                **value,
                "labels": LabelSet(tuple(labels["values"]), labels["ordinal"], labels["urgent"]),
                "lengths": Lengths(**value["lengths"]),
                "recipe": None if value.get("recipe") is None else InputRecipe.from_json(value["recipe"]),
                "prompt_form": PromptForm(**value.get("prompt_form", {})),
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
    manifest = _parsed(path)
    for name, digest in manifest.files.items():
        if sha256_file(path / name) != digest:
            raise altered(path / name)
    return manifest


def described_bundle(path: Path) -> Manifest:
    """A bundle's description, before its files are read; raises as `read_manifest`, but for altered files."""
    return _parsed(path)


@contextlib.contextmanager
def verified_copy(path: Path) -> Iterator[tuple[Manifest, Path]]:
    """A bundle's manifest and a private copy of the files that it lists, to load the model from.

    The bytes that were hashed are the bytes that are loaded, and whatever happens to `path` later, nothing that is
    memory-mapped changes. The copy is removed at the end; on Unix, what is mapped stays readable.

    Raises:
        BundleError: as `read_manifest`, or there is no space for the copy.
    """
    manifest = _parsed(path)
    with tempfile.TemporaryDirectory(prefix="reason2decide-", ignore_cleanup_errors=True) as temporary:
        copy = Path(temporary)
        for name, digest in manifest.files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                found = _copy(path / name, copy / name)
            except OSError as error:
                raise BundleError(
                    f"{path / name} cannot be copied to {temporary} to be loaded ({error.strerror}); "
                    "TMPDIR names the folder for such copies"
                ) from None
            if found != digest:
                raise altered(path / name)
        yield manifest, copy


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of the bytes written."""
    digest = hashlib.sha256()
    with source.open("rb") as stream, target.open("wb") as out:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _parsed(path: Path) -> Manifest:
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder; expected a bundle, which `r2d train` writes at RUN/bundle")
    if not manifest_path.is_file():
        hint = f"; did you mean {path / 'bundle'}?" if (path / "bundle").is_dir() else ""
        raise BundleError(f"{path} is not a bundle: it has no manifest.json{hint}")
    try:
        written = manifest_path.read_bytes()
        content = json.loads(written)
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        found_format, found_prompts = content["bundle_format"], content["prompt_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    _require_exactly(path, files)
    try:
        manifest = Manifest.from_json({**content, "sha256": hashlib.sha256(written).hexdigest()})
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise BundleError(f"{manifest_path} is not the manifest of a bundle ({error}); train the model again") from None
    if manifest.method not in METHODS:
        raise BundleError(f"{path} was trained by the method {manifest.method!r}, which this program does not know")
    return manifest


def _require_exactly(path: Path, listed: Mapping[str, str]) -> None:
    """Raise `BundleError` unless the folder has the listed files, inside it, and no others."""
    # What a file browser, git or a hub download leaves there is hidden, and never read: only listed files are.
    found = (item.relative_to(path) for item in path.rglob("*") if item.is_file())
    present = {item.as_posix() for item in found if not any(part.startswith(".") for part in item.parts)} - {MANIFEST}
    pickles = sorted(name for name in present if Path(name).suffix in PICKLES)
    if pickles:
        raise BundleError(
            f"{path} contains {pickles[0]}, which may run code when read; bundles are safetensors and JSON"
        )
    for name in sorted(set(listed) - present):
        raise BundleError(f"{path} lacks {name}, which its manifest lists; copy the whole bundle again")
    for name in sorted(present - set(listed)):
        raise BundleError(
            f"{path} contains {name}, which its manifest does not list; remove it or copy the bundle again"
        )


def altered(file: Path) -> BundleError:
    """The error for a file that is not the one its bundle was saved with."""
    return BundleError(f"{file} was altered after the bundle was saved (its SHA-256 differs); copy it again")
