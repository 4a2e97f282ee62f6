"""Write a call's facts in words: the note, and three rationales for a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from reason2decide.data.sources.synthetic_calls.facts import Fact, RuledLevel, SyntheticCall
from reason2decide.data.sources.synthetic_calls.rules import Phrases, Rules
from reason2decide.data.sources.synthetic_calls.weighing import Weighed, Weighing, argued, by_rules

# Rates are ours.
UNSEEN_WORDING_RATE = 0.1
TYPO_RATE = 0.03
LEAST_WORDS = (22, 38)
NURSE_MISSING_RATE = 0.2
NURSE_OMITS_RATE = 0.15
UNCOUNTED_IN_RATIONALE = 2


class NoteWriter:
    """Writes one note; with `unseen`, some mentions use wordings that occur only in test notes."""

    def __init__(self, rng: Random, rules: Rules, *, unseen: bool) -> None:
        self.rng, self.rules, self.unseen = rng, rules, unseen
        self.unseen_wordings = 0

    def write(self, call: SyntheticCall) -> str:
        """Write the note of a call: an opening, then its other sentences in random order."""
        sentences = self._findings(call) + self._risks(call)
        sentences.append(self._pick(self.rules.severity[call.severity]))
        opening = self._opening(call)
        least = self.rng.randint(*LEAST_WORDS)
        fillers = self.rules.sentences["child_filler" if call.of_child else "filler"]
        for filler in self._in_random_order(fillers):
            if sum(len(sentence.split()) for sentence in [opening, *sentences]) >= least:
                break
            self.unseen_wordings += filler in fillers.test
            sentences.append(self._with_typos(filler))
        self.rng.shuffle(sentences)
        return ". ".join([opening, *sentences]) + "."

    def _opening(self, call: SyntheticCall) -> str:
        complaint = self.rules.complaints[call.complaint]
        onset = self.rules.onset[call.onset].phrases
        who = f"{call.age} {call.age_unit} {call.sex}"
        return self._sentence("opening", who=who, x=self._pick(complaint.phrases), onset=self._pick(onset))

    def _findings(self, call: SyntheticCall) -> list[str]:
        sentences = [self._sentence("present", x=self._names([id], "and")) for id in call.present]
        if call.denied:
            sentences.append(self._sentence("denied", x=self._names(call.denied, "or")))
        for id, how in call.absent:
            if how != "denied":
                sentences.append(self._sentence(how, x=self._names([id], "and"), relative=self._relative(call)))
        return sentences

    def _risks(self, call: SyntheticCall) -> list[str]:
        risks = [self.rules.risks[id] for id in call.risks]
        sentences = [self._pick(risk.phrases) for risk in risks if risk.phrases.train]
        for id, how in call.absent_risks:
            wording = self.rng.choice(getattr(self.rules.risks[id], how))
            sentences.append(wording.format(relative=self._relative(call)))
        return sentences

    def _in_random_order(self, fillers: Phrases) -> list[str]:
        """All irrelevant sentences that a note may contain."""
        sentences = [*fillers.train, *(fillers.test if self.unseen else ())]
        return self.rng.sample(sentences, len(sentences))

    def _relative(self, call: SyntheticCall) -> str:
        return self.rng.choice(self.rules.child_relatives if call.of_child else self.rules.relatives)

    def _names(self, ids: Sequence[str], last: str) -> str:
        return sentence_of([self._pick(self.rules.findings[id].phrases) for id in ids], last)

    def _sentence(self, kind: str, **slots: str) -> str:
        return self._with_typos(self._pick(self.rules.sentences[kind])).format(**slots)

    def _pick(self, phrases: Phrases) -> str:
        if self.unseen and self.rng.random() < UNSEEN_WORDING_RATE:
            self.unseen_wordings += 1
            return self.rng.choice(phrases.test)
        return self.rng.choice(phrases.train)

    def _with_typos(self, template: str) -> str:
        """Swap two letters of a word now and then; never in a slot, so every deciding fact stays legible."""
        return " ".join(
            self._swap(word) if len(word) > 4 and word.isalpha() and self.rng.random() < TYPO_RATE else word
            for word in template.split(" ")
        )

    def _swap(self, word: str) -> str:
        at = self.rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def rationale_for(call: SyntheticCall, decision: RuledLevel, level: int, rules: Rules) -> str:
    """Write who calls about what, how far each deciding fact moves the urgency, and the urgency of `level`.

    For the level of the rules, what does not count follows. For another one it is the most candid case that the same
    true facts allow: for less urgency, a mild course and denials lead, and what raised it speaks against; for more,
    what raises it leads, and denials speak against. Facts and level alone fix the sentences.
    """
    style = rules.rationale["styles"][rules.group_of(call.complaint).style]
    complaint, base = decision.facts[0], rules.complaints[call.complaint].base
    alone, onset = rules.rationale["level_alone"][base], rules.onset[call.onset].text
    first = style["complaint"].format(x=complaint.text, level=alone, who=patient(call), onset=onset)
    natural = by_rules(decision, base)
    if level == decision.level:
        said = [_weighed(style, own, rules) for own in natural.weighed] or [style["nothing"]]
        said += _uncounted(call, style, rules)
    else:
        said = _argued(call, style, argued(natural, level - decision.level), level > decision.level, rules)
    return " ".join([first, *said, rules.rationale["urgency"][level]])


def _weighed(style: Mapping[str, str], own: Weighed, rules: Rules) -> str:
    """One sentence on facts of a kind and their weight."""
    return style[own.kind].format(x=sentence_of([fact.text for fact in own.facts], "and"), by=_by(own.levels, rules))


def _by(levels: int, rules: Rules) -> str:
    by: str = rules.rationale["by_levels"][abs(levels)]
    return by


def _uncounted(call: SyntheticCall, style: Mapping[str, str], rules: Rules) -> list[str]:
    """Sentences on what the note names and does not count."""
    absent = [*call.absent, *call.absent_risks]
    uncounted = {
        "minor": [rules.findings[id].text for id in call.present if id in rules.minor_findings],
        "denied": [_named(rules, id) for id, how in absent if how == "denied"],
        "elsewhere": [_named(rules, id) for id, how in absent if how != "denied"],
    }
    joined = {"minor": "and", "denied": "or", "elsewhere": "and"}
    return [
        style[kind].format(x=sentence_of(items[:UNCOUNTED_IN_RATIONALE], joined[kind]))
        for kind, items in uncounted.items()
        if items
    ]


def _argued(call: SyntheticCall, style: Mapping[str, str], weighing: Weighing, up: bool, rules: Rules) -> list[str]:
    """Sentences on facts weighed otherwise: what leads, and what speaks against it."""
    words = rules.rationale["contrast"]
    denied = sentence_of([rules.findings[id].text for id in call.denied][:UNCOUNTED_IN_RATIONALE], "or")
    minor = sentence_of([rules.findings[id].text for id in call.present if id in rules.minor_findings], "and")
    mild = [own for own in weighing.weighed if own.kind == "mild"]
    grave = [own for own in weighing.weighed if own.kind != "mild"]
    rest = _by(weighing.rest, rules)
    if up:
        led = [_weighed(style, own, rules) for own in grave]
        if weighing.rest:
            led.append(words["more_minor"].format(x=minor, by=rest) if minor else words["more"].format(by=rest))
        against = [_weighed(style, own, rules) for own in mild]
        return led + against + ([words["more_against"].format(x=denied)] if denied else [])
    led = [_weighed(style, own, rules) for own in mild]
    if denied:
        led.append(
            words["less_denied"].format(x=denied, by=rest) if weighing.rest else words["denied"].format(x=denied)
        )
    elif weighing.rest:
        led.append(words["less"].format(by=rest))
    items = ["a severe course" if fact.kind == "severe" else fact.text for own in grave for fact in own.facts]
    by = _by(sum(own.levels for own in grave), rules)
    return led + ([words["less_against"].format(x=sentence_of(items, "and"), by=by)] if items else [])


def patient(call: SyntheticCall) -> str:
    """The patient in words: a 34-year-old woman, a 5-month-old boy."""
    unit = "year" if call.age_unit == "yo" else "month"
    noun = {"F": ("woman", "girl"), "M": ("man", "boy")}[call.sex][call.of_child]
    article = "an" if str(call.age).startswith("8") or call.age in (11, 18) else "a"
    return f"{article} {call.age}-{unit}-old {noun}"


def _named(rules: Rules, id: str) -> str:
    return (rules.findings[id] if id in rules.findings else rules.risks[id]).text


def nurse_rationales(
    rng: Random, call: SyntheticCall, decision: RuledLevel, label: int, rules: Rules
) -> tuple[str, str] | None:
    """Write the nurse's short notes, with some facts omitted, and the same in sentences; None if there are no notes."""
    if rng.random() < NURSE_MISSING_RATE:
        return None
    complaint, *others = decision.facts
    kept = [fact for fact in others if rng.random() >= NURSE_OMITS_RATE]
    denied = [id for id in call.denied[:1] if rng.random() >= NURSE_OMITS_RATE]
    advised = rng.random() >= NURSE_OMITS_RATE
    jotted = ", ".join([complaint.text, *(_short(fact, rules) for fact in kept)])
    jotted += "".join(f", (-) {rules.findings[id].short}" for id in denied)
    jotted += f" -> {rules.rationale['short_urgency'][label]}" if advised else ""
    words = rules.rationale["refined"]
    sentences = [words["complaint"].format(x=complaint.text), *_reasons(words, kept)]
    sentences += [words["denied"].format(x=rules.findings[id].text) for id in denied]
    sentences += [rules.rationale["urgency"][label]] if advised else []
    return jotted, " ".join(sentences)


def _reasons(words: dict[str, str], facts: Sequence[Fact]) -> list[str]:
    """One sentence per kind of fact, in the order the rules apply."""
    kinds = dict.fromkeys(fact.kind for fact in facts)
    return [
        words[kind].format(x=sentence_of([fact.text for fact in facts if fact.kind == kind], "and")) for kind in kinds
    ]


def _short(fact: Fact, rules: Rules) -> str:
    if fact.kind == "red_flags":
        return f"+{rules.findings[fact.id].short}"
    if fact.kind == "danger":
        risk, other = fact.ids
        named = rules.findings[other].short if other in rules.findings else rules.complaints[other].text
        return f"{rules.risks[risk].short} w/ {named}"
    return rules.risks[fact.id].short if fact.kind == "risk" else fact.text


def sentence_of(items: Sequence[str], last: str) -> str:
    """Join items as in 'a, b and c', where `last` is the final joining word."""
    return f"{', '.join(items[:-1])} {last} {items[-1]}" if len(items) > 1 else "".join(items)
