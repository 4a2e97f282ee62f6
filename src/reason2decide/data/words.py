"""Split texts into words, and find or mask those of labels: repeating a label is no reason for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, and Chinese characters.
_UNSPACED = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNSPACED = re.compile(f"[{_UNSPACED}]+")
WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")  # of those scripts, each character
MASK = "___"
# Ours: English words that carry no content of a note, a label or a rationale.
_FUNCTION_WORDS = """
a an and another any are as at be because been being both but by can could did do does doing done during each
either else every for from further had has have having he her here hers him his how however i if in into is it its
itself just may me might more most must my neither no nor not now of off on once one only or other our out over own
per s same shall she should since so some such t than that the their them then there these they this those though
through to too under until up upon us very was we were what when where whether which while who whom whose why will
with within without would you your
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits, and each character of scripts without spaces."""
    return [word.casefold() for word in WORD.findall(text)]


def unit_spans(text: str) -> list[Span]:
    """The parts of a text that are compared with another's, as (start, end) in order: words, and where a script has no
    spaces all pairs of neighbouring characters.

    Source: overlapping pairs are as good as dictionaries for retrieval in Chinese and Japanese (Nie et al. 2000).
    """
    words = [match.span() for match in WORD.finditer(text)]
    joined = [UNSPACED.match(text, start) is not None for start, _ in words]
    spans = []
    for i, (start, end) in enumerate(words):
        follows = i + 1 < len(words) and joined[i] and joined[i + 1] and words[i + 1][0] == end
        follows_on = i > 0 and joined[i] and joined[i - 1] and words[i - 1][1] == start
        if follows:
            spans.append((start, words[i + 1][1]))
        elif not follows_on:
            spans.append((start, end))
    return spans


def units(text: str) -> list[str]:
    """The parts of `unit_spans` in lower case.

    >>> units("Fever seit 高熱三日")
    ['fever', 'seit', '高熱', '熱三', '三日']
    """
    return [text[start:end].casefold() for start, end in unit_spans(text)]


@lru_cache(maxsize=256)
def _masked_words(labels: tuple[str, ...]) -> frozenset[str]:
    words = [frozenset(units(label)) for label in labels]
    return frozenset().union(*(label_words - STOP_WORDS or label_words for label_words in words))


def mask_label_words(text: str, labels: Iterable[str]) -> str:
    """Replace every word of `text` that occurs in any of the labels by "___" (ours).

    Whole words and numbers match in any case; their inflections do not. Stop words stay, except those of a label that
    has nothing else, such as "no". All labels are masked, not only the decided one: the mask must not reveal it.
    """
    hidden = _masked_words(tuple(labels))
    parts, done = [], 0
    for start, end in unit_spans(text):
        if text[start:end].casefold() in hidden:
            parts += [text[done:start], MASK] if start >= done and (start > done or not done) else []
            done = max(done, end)
    return "".join([*parts, text[done:]])


# Begins at the first mark of a run only, so that a long run takes linear time.
SENTENCE_END = re.compile(r"(?<![.!?;])[.!?;]+(?=\s|$)|[\u3002\uff01\uff1f\uff1b]+|\n")
SUFFIX = re.compile(r"(?<=\w{3})(?:ing|ed|es|(?<!s)s|e)$")
Span = tuple[int, int]


@lru_cache(maxsize=1 << 16)  # ours: words repeat
def stem(word: str) -> str:
    """Lower-case a word and cut its ending: the first of -ing, -ed, -es, -s (not -ss), -e that leaves three letters.

    A doubled last letter becomes one, so that "stopped" and "stop" match. Ours: cruder than Porter's, in one line.
    """
    bare = SUFFIX.sub("", word.casefold())
    return bare[:-1] if len(bare) > 3 and bare[-1] == bare[-2] else bare


def named_labels(text: str, labels: Iterable[str], form: Callable[[str], str] = str) -> set[str]:
    """Find the labels whose words occur in a text in order.

    A label within a longer one ("care" in "home care") does not count. Labels made only of stop words or numbers, such
    as "no" or "3", occur in any text: they count only if given as an answer, as in "the answer is no" or at the very
    beginning before a comma or full stop.

    Args:
        form: what equal words have in common: with `stem`, "desks" names "desk".
    """
    words = [form(word) for word in words_of(text)]
    spans: dict[tuple[int, int], set[str]] = {}
    found = set()
    for label in labels:
        label_words = words_of(label)
        if all(word in STOP_WORDS or word.isdigit() for word in label_words):
            if label_words and _given_as_answer(text, label):
                found.add(label)
            continue
        sought = [form(word) for word in label_words]
        for start in range(len(words) - len(sought) + 1):
            end = start + len(sought)
            if words[start:end] == sought:
                spans.setdefault((start, end), set()).add(label)
    for (start, end), named in spans.items():
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans):
            found |= named
    return found


_GIVEN_AS_ANSWER = (
    r"(?:answer|label|decision|conclusion|verdict|level|category)\W+(?:(?:is|was|be|would|should|must)\W+)*"
)


def _given_as_answer(text: str, label: str) -> bool:
    given = r"\s+".join(map(re.escape, label.split()))
    return re.search(rf"\b{_GIVEN_AS_ANSWER}{given}\b|^\W*{given}\s*(?:[.,;:!]|$)", text, re.IGNORECASE) is not None


def sentences(text: str) -> list[Span]:
    """The sentences of a text as (start, end), without surrounding white space; `SENTENCE_END` is the rule."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    spans = zip([0, *ends], [*ends, len(text)], strict=True)
    trimmed = ((end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())) for start, end in spans)
    return [(start, end) for start, end in trimmed if start < end]


_NEVER_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # controls and direction marks
_MARKUP = re.compile(r"[\\`*_\[\]~#$]|^[-+=]")
_LIST_NUMBER = re.compile(r"^(\d+)([.)])")
# "|" too, since no parser takes an entity for the end of a cell.
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"})


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it literally: in a line, at its start, in a heading or in a table cell.

    White space, including line breaks and control characters, becomes single spaces. Web addresses stay, and
    viewers may link them. Source: CommonMark 0.31.2; tables and `~` of GitHub Flavored Markdown, `$` of its formulas.
    """
    shown = " ".join(_NEVER_SHOWN.sub(" ", text).split())
    return _LIST_NUMBER.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", shown)).translate(_ENTITIES)
