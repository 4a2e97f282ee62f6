"""Whether a clinical text says that a finding is there, is denied, or is somebody else's or past.

A reader of cues, sentence by sentence, after ConText (Harkema et al. 2009); cues and scopes are ours, for English. A
denial reaches forward to a word that ends it ("but", "has", "also"), "(-)" the next finding only; a relative reaches
forward to the end of the sentence, unless he or she is only reporting; "denied", "says no", "gone now" and the like
reach back. Its measured errors are in docs/measures.md. The package medspaCy was tried and not taken: it needs an older
numpy, writes the words of notes to the log, and reads "SOB: denied", "neighbor has" and "(-)" as present.
"""

from __future__ import annotations

import re
from typing import Literal

Assertion = Literal["present", "denied", "elsewhere"]
SCOPE = (
    200  # ours: characters that a cue may be away, about thirty words; it bounds the time that a long sentence takes
)

_RELATIVES = (
    r"(?:grand)?(?:mother|father|parent)s?|mom|dad|mum|sisters?|brothers?|siblings?|sons?|daughters?|wife|husband|spouse"
    r"|partner|aunts?|uncles?|nieces?|nephews?|cousins?|relatives?|neighbou?rs?|friends?|roommates?|colleagues?"
    r"|co-?workers?|classmates?|somebody else|someone else"
)
_REPORTING = (
    r"says?|said|stat(?:es|ed|ing)|reports?|reported|reporting|calls?|called|calling|is calling|thinks?|thought"
    r"|notic(?:es|ed)|found|brought|(?:is|are|was|were) (?:worried|concerned|anxious|afraid|calm)|asks?|asked|wants?"
    r"|gave|denies|denied"
)
_FORWARD = re.compile(
    r"(?P<item>\(-\)\s*$)"
    r"|(?P<neutral>\bnot (?:only|just)\b|\bno (?:change|increase|doubt|longer able)\b|\bwithout (?:change|relief)\b)"
    rf"|(?P<reporting>\b(?:{_RELATIVES})\s+(?:{_REPORTING})\b)"
    r"|(?P<denies>(?:\b(?:no|not|never|without|nor|neither|den(?:y|ies|ied|ying)|neg(?:ative)?|absence|absent|lacks?"
    r"|free of|rul(?:es?|ed|ing) out|unlikely|cannot|unable|w/o)|\w+n't)(?: (?:had|have|having))?\b|\u00d8)"
    rf"|(?P<elsewhere>\b(?:{_RELATIVES}|family (?:history|hx)|fhx?|previously|formerly|once had|used to|stopped"
    r"|finished)\b)"
    r"|(?P<ends>\b(?:but|however|yet|though|although|while|except|has|have|having|had|present|reports?|also)\b|\+)",
    re.I,
)
_BACKWARD = re.compile(
    r"(?P<neutral>\b(?:since|starting|started|began|onset)\b[^,;]*\bago\b)"
    r"|(?P<ends>\b(?:but|however|yet|though|although|while|except|has|have|having|reports?|also|denies|no|not)"
    r"\b\s+(?!$)|\+)"
    r"|(?P<denies>\b(?:is|are|was|were)? ?(?:denied|negative|absent|ruled out|excluded)\b"
    r"|\b(?:says?|said|answers?) no\b|[:,]?\s*\b(?:no|none|neg)\b\s*$|\(-\)\s*$)"
    r"|(?P<elsewhere>\b(?:gone|resolved|last (?:year|month|week)|(?:years?|months?|weeks?) ago|in the past|no longer"
    rf"|in (?:his|her|the|a|their) (?:{_RELATIVES}))\b|,\s*past\b|\bof (?:somebody|someone) else\b)",
    re.I,
)


def assertion_at(sentence: str, start: int, end: int) -> Assertion:
    """What a sentence asserts of the finding that it names at `start` to `end`.

    Example:
        >>> sentence = "Denies chest pain but has a stiff neck, her son had a seizure"
        >>> [assertion_at(sentence, sentence.index(w), sentence.index(w) + len(w)) for w in ("pain", "neck", "seizure")]
        ['denied', 'present', 'elsewhere']
    """
    sentence = sentence.replace("\u2019", "'")
    return _before(sentence[max(0, start - SCOPE) : start]) or _after(sentence[end : end + SCOPE]) or "present"


def _before(words: str) -> Assertion | None:
    """What the words before a finding make of it; None if nothing."""
    denied = elsewhere = False
    for cue in _FORWARD.finditer(words):
        if cue["item"] or cue["denies"]:
            denied = True
        elif cue["elsewhere"]:
            elsewhere = True
        elif cue["ends"]:
            denied = False
            elsewhere = elsewhere and cue["ends"].casefold() not in ("but", "however", "though", "although", "while")
    return "elsewhere" if elsewhere else "denied" if denied else None


def _after(words: str) -> Assertion | None:
    """What the words after a finding make of it; None if nothing."""
    for cue in _BACKWARD.finditer(words):
        if not cue["neutral"]:
            return None if cue["ends"] else "denied" if cue["denies"] else "elsewhere"
    return None
