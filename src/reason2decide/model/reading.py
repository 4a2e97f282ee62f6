"""Read texts that are longer than a model's prompt: how much of one is read, and which part decides. Pure functions.

Whatever is chosen, how much was read is part of every decision: `Decision.tokens` and `Decision.tokens_read`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from reason2decide.errors import ConfigError, DataError

if TYPE_CHECKING:
    from reason2decide.data.records import LabelSet

LongTexts = Literal["decide", "defer", "refuse", "windows"]
OVERLAP = 0.25  # ours: share of a window that it has in common with the one before, so that no finding is cut in two
MOST_WINDOWS = 8  # ours: bounds the time of one text; what lies beyond counts as not read
LEAST_INPUT = 16  # as `Lengths.input`
LONG_TEXTS_HELP = (
    "How texts over the prompt's limit are read: decide on the beginning, also defer to a person, refuse, or read "
    "overlapping windows, of which the most urgent answer wins, or else their mean."
)
INPUT_TOKENS_HELP = "Longest prompt in tokens; default: as trained. More needs a base such as T5."

Part = tuple[int, int]  # begin and end in the tokens of a text


class TextTooLong(DataError):
    """The text does not fit in a prompt, and texts that would be cut are refused."""


class UnreadableText(DataError):
    """The tokenizer reads nothing in the text, so there is nothing to decide on."""


@dataclass(frozen=True)
class ReadingSettings:
    """How texts over the prompt's limit are read.

    Args:
        long_texts: `decide` on the beginning; `defer` to a person, besides deciding on the beginning; `refuse`; or
            read `windows` that overlap and decide by `deciding_window`.
        input_tokens: longest prompt in tokens; None takes the limit of training. More needs a base whose positions are
            relative, such as T5.

    Raises:
        ConfigError: an unknown value, or fewer than 16 tokens.
    """

    long_texts: LongTexts = "decide"
    input_tokens: int | None = None

    def __post_init__(self) -> None:
        known = get_args(LongTexts)
        if self.long_texts not in known:
            raise ConfigError(f"long_texts is {self.long_texts!r}; expected one of {', '.join(known)}")
        if self.input_tokens is not None and self.input_tokens < LEAST_INPUT:
            raise ConfigError(f"input_tokens is {self.input_tokens}; expected at least {LEAST_INPUT}")

    def parts(self, tokens: int, room: int) -> list[Part]:
        """The parts of a text of this many tokens that are read, given the room for text in a prompt.

        Raises:
            TextTooLong: it does not fit, and such texts are refused.
        """
        if tokens > room and self.long_texts == "refuse":
            raise TextTooLong(f"the text has {tokens} tokens and {room} fit in the model's prompt; send less")
        return windows(tokens, room) if self.long_texts == "windows" else [(0, min(tokens, room))]

    def defers(self, tokens: int, tokens_read: int) -> bool:
        """Whether a decision on a text is left to a person because of how much of it was read."""
        return tokens_read < tokens and self.long_texts != "decide"


WHAT_FITS = ReadingSettings()  # the default: decide on what fits


# Kinds of model whose positions count on from the padding token's id, so that of 514 they read 512: RoBERTa's family.
PADDED_POSITIONS = frozenset(
    {"roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "data2vec-text", "ibert"}
    | {"longformer", "luke", "mpnet"}
)


def positions_of(config: Any) -> int | None:
    """Length of the longest prompt that a model of this configuration can read; None: its positions are relative."""
    encoder = getattr(config, "encoder", config)  # of a pair, such as two BERTs
    positions = getattr(encoder, "max_position_embeddings", None)
    if positions is None:
        return None
    return int(positions) - (encoder.pad_token_id + 1 if encoder.model_type in PADDED_POSITIONS else 0)


def windows(tokens: int, room: int) -> list[Part]:
    """Parts of `room` tokens that cover a text and overlap by at least `OVERLAP`, at most `MOST_WINDOWS`.

    The last one ends where the text ends, unless the text is longer than all windows together.
    """
    stride = max(1, room - int(OVERLAP * room))
    begins = list(range(0, max(1, tokens - room + stride), stride))[:MOST_WINDOWS]
    ends = [min(begin + room, tokens) for begin in begins]
    return [(max(0, end - room), end) for end in ends]


def deciding_window(distributions: Sequence[Mapping[str, float]], labels: LabelSet) -> Mapping[str, float]:
    """The distribution of a text from those of its windows, by label.

    Where one end of the labels is the urgent one, it is that of the window with the most urgent answer, the surest one
    of equals: a red flag counts wherever it stands. Elsewhere it is their mean. Source: ours.
    """
    if len(distributions) == 1 or labels.urgent is None:
        share = 1 / len(distributions)
        return {label: share * sum(p[label] for p in distributions) for label in distributions[0]}
    urgency = {label: place if labels.urgent == "last" else -place for place, label in enumerate(labels.values)}
    best = max(distributions, key=lambda p: (urgency[_answer(p)], p[_answer(p)]))
    return dict(best)


def explaining_window(distributions: Sequence[Mapping[str, float]], label: str) -> int:
    """Index of the window whose text a rationale for `label` is written from: one that answers it, the surest."""
    return max(range(len(distributions)), key=lambda i: (_answer(distributions[i]) == label, distributions[i][label]))


def _answer(distribution: Mapping[str, float]) -> str:
    return max(distribution, key=distribution.__getitem__)
