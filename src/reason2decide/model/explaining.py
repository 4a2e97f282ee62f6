"""Write reasons and check them: the second pass of the paper, and which label a reason tells."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import ConfigError
from reason2decide.method.methods import Explain
from reason2decide.method.prompts import Candidate
from reason2decide.model.batches import in_batches
from reason2decide.model.calibration import label_distribution
from reason2decide.model.decoding import GREEDY, Decoding
from reason2decide.model.engines import Engine
from reason2decide.model.prompt_encoder import PromptEncoder, TokenIds, TokenPrompt, Truncation
from reason2decide.model.reading import Part, explaining_window
from reason2decide.model.reason_checks import ReasonCheck
from reason2decide.model.reasons import MOST_LABELS, TEMPERATURE, Reason, ReasonSettings


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it: its tokens, the parts of them that prompts contain, and the labels to choose from.

    `candidates` are the labels' tokens; `head` is what each part is preceded by: the tokens of a record's own choices.
    """

    tokens: TokenIds
    parts: Sequence[Part]
    choices: tuple[str, ...]
    candidates: Sequence[Candidate]
    head: TokenIds

    def part(self, index: int) -> list[int]:
        """The tokens of one part as they follow a prefix."""
        begin, end = self.parts[index]
        return [*self.head, *self.tokens[begin:end]]


@dataclass(frozen=True)
class Explained:
    """What a reason is written for: a text, a label, and P(label | part) of each part, where that is known."""

    text: ReadText
    label: str
    found: Sequence[Mapping[str, float]] = ()

    @property
    def part(self) -> int:
        """The part of the text that the reason is written from."""
        return explaining_window(self.found, self.label) if len(self.text.parts) > 1 else 0

    def likeliest(self, most: int) -> list[str]:
        """The label itself and the most probable others, `most` in all."""
        known = self.found[self.part] if self.found else {}
        others = [label for label in self.text.choices if label != self.label]
        return [self.label, *sorted(others, key=lambda label: -known.get(label, 0.0))][:most]


class ReasonWriter:
    """Writes reasons with an engine, in the way that the settings say.

    `cut` counts the texts of which the prompt for the reason, which has the label too, holds less than that for the
    decision.

    Args:
        explain: how the model is prompted for a reason.
        check: whether a reason supports its label; None: reasons cannot be checked.

    Raises:
        ConfigError: the settings need a model whose reasons depend on a label, or whose reasons can be checked.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        explain: Explain,
        settings: ReasonSettings,
        check: ReasonCheck | None,
    ) -> None:
        if (settings.guidance or settings.best_of > 1) and explain != "conditioned":
            raise ConfigError(
                "guidance and best_of need a model whose reasons depend on the label, and this one's do not; leave "
                "them out, or train it by r2d or a method derived from it"
            )
        if settings.check_reasons == "defer" and check is None:
            raise ConfigError(
                "check_reasons = 'defer' needs a model that was trained and validated on rationales, and this one was "
                "not; leave it out"
            )
        self.engine, self.encoder, self.explain, self.settings = engine, encoder, explain, settings
        self.check = None if settings.check_reasons == "off" else check
        self.cut = Truncation()

    def needs_found(self, text: ReadText) -> bool:
        """Whether P(label | part) must be known to explain a text."""
        many = self.settings.best_of > 1 and len(text.choices) > MOST_LABELS
        return len(text.parts) > 1 or self.settings.guidance > 0 or many

    def write(self, explained: Sequence[Explained]) -> list[Reason]:
        """The reason of each, and whether it supports its label where reasons are checked."""
        written = self.drafts(explained)
        several = self.settings.best_of > 1
        texts = self._best(explained, written) if several else [text for (text,) in written]
        return self.checked(texts, [own.label for own in explained], [own.text.choices for own in explained])

    def drafts(self, explained: Sequence[Explained]) -> list[list[str]]:
        """The different texts written for each, the greedy or guided one first; one each unless `best_of` says more."""
        drafts = range(self.settings.best_of)
        rows = [(own, prompt, draft) for own in explained for prompt in (self.prompt(own),) for draft in drafts]
        written = in_batches(
            [len(prompt) for _, prompt, _ in rows],
            lambda batch: self.engine.generate(
                [rows[row][1] for row in batch],
                self.encoder.lengths.rationale,
                self._decoding([rows[row] for row in batch]),
            ),
        )
        texts = [self.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
        return [self._different(texts[i : i + len(drafts)]) for i in range(0, len(texts), len(drafts))]

    def _different(self, texts: Sequence[str]) -> list[str]:
        """The texts that differ when they are read, the first of equals."""
        if len(texts) == 1:
            return list(texts)
        first: dict[Candidate, str] = {}
        for text in texts:
            first.setdefault(reason_candidate(self.encoder, text), text)
        return list(first.values())

    def stream(self, explained: Explained) -> Iterator[str]:
        """The text of a reason in pieces as they are written; in one piece where several are written or guided."""
        if self.settings.guidance or self.settings.best_of > 1:
            yield self.write([explained])[0].text
            return
        ids: list[int] = []
        written = text = ""
        for token in self.engine.stream(self.prompt(explained), self.encoder.lengths.rationale):
            ids.append(token)
            text = self.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()
            # Where the text ends in a replacement character, a character of several tokens is not complete yet.
            if len(text) > len(written) and text.startswith(written) and not text.endswith("\ufffd"):
                yield text[len(written) :]
                written = text
        if len(text) > len(written) and text.startswith(written):  # the limit came in the middle of a character
            yield text[len(written) :]

    def checked(self, texts: Sequence[str], labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[Reason]:
        """Texts as reasons for their labels, checked if the settings say so and the model can be."""
        if self.check is None:
            return [Reason(text) for text in texts]
        return self.check.checked(texts, labels, choices)

    def prompt(self, explained: Explained, label: str | None = None) -> TokenPrompt:
        """The prompt that asks for the reason, for its own label or another."""
        given = (label or explained.label) if self.explain == "conditioned" else None
        part = explained.text.part(explained.part)
        if label is None:
            self.cut.count(len(part) > self.encoder.room(given))
        return self.encoder.explain(part, given)

    def _decoding(self, rows: Sequence[tuple[Explained, TokenPrompt, int]]) -> Decoding:
        if self.settings.best_of == 1 and not self.settings.guidance:
            return GREEDY
        rivals = None
        if self.settings.guidance:
            rivals = [self.prompt(own, own.likeliest(2)[-1]) for own, _, _ in rows]
        seeds = [_seed(prompt, draft) if draft else None for _, prompt, draft in rows]
        return Decoding(rivals, self.settings.guidance, seeds, TEMPERATURE)

    def _best(self, explained: Sequence[Explained], texts: Sequence[Sequence[str]]) -> list[str]:
        """Of the texts written for each, the one with the highest label posterior, the first of equals."""
        asked = [
            ReasonsToRead(
                own.text.part(own.part),
                own.likeliest(MOST_LABELS),
                [reason_candidate(self.encoder, text) for text in drafts],
            )
            for own, drafts in zip(explained, texts, strict=True)
        ]
        posteriors = label_posteriors(self.engine, self.encoder, asked)
        # The first label is the reasons' own.
        return [drafts[int(own[0].argmax())] for drafts, own in zip(texts, posteriors, strict=True)]


@dataclass(frozen=True)
class ReasonsToRead:
    """Which of the labels reasons for a text were written for; `targets` are the reasons' tokens."""

    text: TokenIds
    labels: Sequence[str]
    targets: Sequence[Candidate]


def label_posteriors(
    engine: Engine, encoder: PromptEncoder, asked: Sequence[ReasonsToRead]
) -> list[NDArray[np.float64]]:
    """P(y | x, r) = P(r | x, y) / sum over y' of P(r | x, y'), for each asked (labels, reasons) (ours)."""
    rows = [(own, encoder.explain(own.text, label)) for own in asked for label in own.labels]
    scores = iter(
        in_batches(
            [len(prompt) for _, prompt in rows],
            lambda batch: engine.score_labels([rows[row][1] for row in batch], [rows[row][0].targets for row in batch]),
        )
    )
    tables = [np.stack([next(scores) for _ in own.labels]) for own in asked]
    return [np.stack([label_distribution(column) for column in table.T], axis=1) for table in tables]


def reason_candidate(encoder: PromptEncoder, text: str) -> Candidate:
    """The tokens of a reason as a model scores them: cut to the limit of reasons, the end token last."""
    end = tuple(encoder.ends)
    target = tuple(encoder.target_ids([text])[0])
    content = target[: len(target) - len(end)]
    return (*content[: encoder.lengths.rationale - len(end)], *end)


def _seed(prompt: TokenPrompt, draft: int) -> int:
    """The seed of a draft: the same for the same prompt, whatever is written beside it."""
    digest = hashlib.blake2b(
        np.asarray([*prompt.text, *prompt.lead, draft], np.int64).tobytes(), digest_size=8
    ).digest()
    return int.from_bytes(digest, "big")
