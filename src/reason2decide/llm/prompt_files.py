"""Load the prompts sent to language models: versioned files in the package, which users can replace.

A prompt is a TOML file with `name`, `version`, `system` and `user`, the last two with named {slots}. Slots are filled
in one pass and by name only, so braces in a note or in a JSON example are harmless, and inserted text is not searched
again.

Texts from records are data, not instructions: they are placed between two fence lines that contain a nonce. The nonce
is a keyed hash of the texts, so it is the same in every run (answers stay cached), and a text that closes its own fence
would have to contain its own hash. It stands around the data only: prompts begin with what is the same for all records
(instructions, examples, choices) and end with the record, so that a server with a prefix cache reads the rest once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from reason2decide.errors import UserError
from reason2decide.syntax import Malformed, parse_toml

NONCE_CHARACTERS = 32  # ours: 128 bits, which cannot be guessed by trial and error
NONCE_SLOT = "nonce"  # filled in automatically where a prompt has it

_SLOT = re.compile(r"\{([a-z][a-z_]*)\}")


class PromptError(UserError):
    """A prompt file is missing or invalid."""


def fence_nonce(version: str, texts: Sequence[str]) -> str:
    """Compute the nonce for all fences of a call: HMAC-SHA256 of the texts, keyed by the prompt's version; 128 bits."""
    mac = hmac.new(version.encode(), digestmod=hashlib.sha256)
    for text in texts:
        mac.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())  # so that no two lists collide
    return mac.hexdigest()[:NONCE_CHARACTERS]


def fence(text: str, nonce: str) -> str:
    """Put the text between two lines that it cannot contain."""
    return f"<<<DATA {nonce}\n{text}\nDATA {nonce}>>>"


_FENCE = re.compile(r"<<<DATA (?P<code>[0-9a-f]{32})\n(?P<text>.*?)\nDATA (?P=code)>>>", re.DOTALL)


def fenced_texts(content: str) -> list[str]:
    """The texts between the fences of a message."""
    return [found["text"] for found in _FENCE.finditer(content)]


def fence_codes(messages: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """The codes of all fences in these messages; an answer that repeats one quotes the prompt."""
    return frozenset(found["code"] for message in messages for found in _FENCE.finditer(message["content"]))


@dataclass(frozen=True)
class Prompt:
    """One prompt; `full_version` identifies it in the log of calls."""

    name: str
    version: str
    system: str
    user: str

    @property
    def full_version(self) -> str:
        """Name and version, such as ping/1."""
        return f"{self.name}/{self.version}"

    def slots(self) -> frozenset[str]:
        """The slots that a caller must fill."""
        return frozenset(_SLOT.findall(self.system + self.user)) - {NONCE_SLOT}

    def messages(
        self, data: Mapping[str, str], words: Mapping[str, str] | None = None, *, apart: Collection[str] = ()
    ) -> list[dict[str, str]]:
        """Make the messages of a call: `data` are texts of records, which are fenced; `words` are inserted as they are.

        The codes of fences depend on all data together, except that those named in `apart` have one of their own: data
        that other calls share or that only some have, so that calls begin alike for a server's prefix cache. An empty
        system prompt is omitted: some chat templates have no system role.
        """
        words = words or {}
        assert self.slots() == data.keys() | words.keys(), f"{self.full_version} has slots {sorted(self.slots())}"
        shared, own = ({name: data[name] for name in data if (name in apart) is same} for same in (True, False))
        values = dict(words)
        for texts in (shared, own):
            nonce = fence_nonce(self.full_version, [texts[name] for name in sorted(texts)])
            values |= {name: fence(text, nonce) for name, text in texts.items()} | {NONCE_SLOT: nonce}
        parts = {"system": self.system, "user": self.user}
        return [
            {"role": role, "content": _SLOT.sub(lambda match: values[match[1]], part)}
            for role, part in parts.items()
            if part
        ]


def prompt_names() -> list[str]:
    """The names of the package's prompts."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def load_prompt(name: str, folder: Path | None = None) -> Prompt:
    """Load a prompt of the package, or the user's version if `folder` contains one of this name.

    Raises:
        PromptError: the package has no prompt of this name, or the user's file is invalid.
    """
    packaged = _folder() / f"{name}.toml"
    if not packaged.is_file():
        raise PromptError(f"there is no prompt {name!r}; expected one of {', '.join(prompt_names())}")
    original = _parse(packaged.read_text("utf-8"), packaged.name)
    path = folder / f"{name}.toml" if folder else None
    if path is None or not path.is_file():
        return original
    try:
        prompt = _parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"the prompt {path} cannot be read: {error}") from None
    if prompt.name != name:
        raise PromptError(f"the prompt {path} has the name {prompt.name!r}; it must be {name!r}, like its file")
    if prompt.slots() != original.slots():
        wanted, has = (", ".join(sorted(p.slots())) or "none" for p in (original, prompt))
        raise PromptError(f"the prompt {path} must have the package's slots {wanted}; it has {has}")
    if prompt.version == original.version and prompt != original:
        raise PromptError(f"the prompt {path} needs a version other than the package's, {original.version}")
    return prompt


def _folder() -> resources.abc.Traversable:
    return resources.files("reason2decide.llm") / "prompts"


def _parse(text: str, where: str) -> Prompt:
    try:
        fields = parse_toml(text)
    except Malformed as error:
        raise PromptError(f"the prompt {where} is {error}") from None
    wanted = ("name", "version", "system", "user")
    if fields.keys() != set(wanted) or not all(isinstance(value, str) for value in fields.values()):
        raise PromptError(f"the prompt {where} must have exactly these fields, all of them text: {', '.join(wanted)}")
    return Prompt(**{name: fields[name].strip() for name in wanted})
