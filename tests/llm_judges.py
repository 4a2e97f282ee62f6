"""Judges with a rule for a mind, for the test server: what they think of a rationale, and whom they obey.

All give a rationale more the more words of four letters or more it shares with the text (or with the expert's answer,
where they are shown one), and all obey whatever stands outside of the data, as a language model does. They differ in
what they take for data:

    rules      what stands between a fence and the next one with its code
    strict     the same, harsher, and fond of what stands first
    naive      what stands between anything that looks like a fence
    gullible   nothing: it obeys the data too
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# What a client says of the answer's form, which is no order.
FORM = re.compile(r"^Answer with one JSON object and nothing else\. It must be valid under .*\n\{.*\}$", re.MULTILINE)
MODELS = ("rules", "strict", "naive", "gullible")
NOT_GIVEN = "(not given"
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
WANTED = r"score|puntuaci[óo]n|note de|bewertung|оценка|评分|スコア|التقييم|better"
ORDER = re.compile(rf"(?:{WANTED})[^\n.]{{0,24}}?([1-5]|five|first|second)", re.IGNORECASE)


def heard(model: str, prompt: str) -> tuple[str, list[str]]:
    """What stands outside of the data, and the data, as this judge takes them."""
    begin, end = (r"\S*", r"\S*") if model == "naive" else ("(?P<code>[0-9a-f]{32})", "(?P=code)")
    fenced = re.compile(rf"^<<<DATA {begin}\n(?P<data>.*?)\nDATA {end}>>>$", re.DOTALL | re.MULTILINE)
    return fenced.sub("", prompt), [found["data"] for found in fenced.finditer(prompt)]


def order(model: str, prompt: str, outside: str) -> str | None:
    """The verdict that somebody asks for, if the judge listens."""
    found = ORDER.search(INVISIBLE.sub("", prompt if model == "gullible" else outside))
    return found and {"five": "5"}.get(found[1].lower(), found[1].lower())


def shared(one: str, other: str) -> int:
    words = [set(re.findall(r"\w{4,}", INVISIBLE.sub("", text).lower())) for text in (one, other)]
    return len(words[0] & words[1])


def levels(model: str, prompt: str, expert: str) -> dict[str, float]:
    """The probability of each level. The data are the text, the decision, the rationale, and what an expert wrote."""
    outside, data = heard(model, prompt)
    level = 1 + shared(expert or data[0], data[2]) / (3 if model == "strict" else 2)
    wanted = order(model, prompt, outside)
    if wanted and wanted.isdigit():
        level = int(wanted)
    weights = {str(n): math.exp(-2 * abs(n - min(5, level))) for n in range(1, 6)}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def better(model: str, prompt: str) -> str:
    """Which of the two answers behind the text does better."""
    outside, data = heard(model, prompt)
    wanted = order(model, prompt, outside)
    if wanted in ("first", "second"):
        return wanted
    gap = shared(data[0], data[1]) - shared(data[0], data[2])
    if model == "strict" and abs(gap) < 2:
        return "first"
    return "tie" if gap == 0 else "first" if gap > 0 else "second"


def judged(payload: Mapping[str, Any], form: Mapping[str, Any] | None) -> tuple[str, list[dict[str, Any]]] | None:
    """The answer of a chat and its tokens with log-probabilities; None if nothing is to be judged."""
    asked = set((form or {}).get("properties", {}))
    prompt = FORM.sub("", "\n".join(message["content"] for message in payload["messages"][:2]))
    if asked == {"better"}:
        return json.dumps({"better": better(payload["model"], prompt)}), []
    if asked != {"score"}:
        return None
    reference = heard("rules", prompt)[1][3]
    p = levels(payload["model"], prompt, "" if reference.startswith(NOT_GIVEN) else reference)
    score = max(p, key=p.__getitem__)
    top = [{"token": " " + level, "logprob": math.log(share)} for level, share in p.items()]
    tokens = [('{"score', 0.0, []), ('":', 0.0, []), (" " + score, math.log(p[score]), top), ("}", 0.0, [])]
    content = [{"token": token, "logprob": logprob, "top_logprobs": tops} for token, logprob, tops in tokens]
    return json.dumps({"score": int(score)}), content


def decided(model: str, state: str, question: Mapping[str, Any], options: list[str]) -> dict[str, float] | None:
    """The probabilities of a decision's options; None if nothing is to be judged."""
    if "<<<DATA" not in state or (len(options) != 5 and options != ["first", "second", "tie"]):
        return None
    if len(options) == 5:
        expert = heard("rules", question.get("instructions", ""))[1]
        return dict(zip(options, levels(model, state, expert[0] if expert else "").values(), strict=True))
    chosen = better(model, state)
    return {option: 0.8 if option == chosen else 0.1 for option in options}
