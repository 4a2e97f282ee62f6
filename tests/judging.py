"""Records, rationales and judges for the tests of judges."""

from __future__ import annotations

from reason2decide.data.records import LabelSet, Record
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.judge.pairwise import Pairwise
from reason2decide.llm.judge.pointwise import Judge, Pointwise
from reason2decide.llm.judge.rubric import load_rubric
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settings import Limits

LABELS = LabelSet(("home care", "see a doctor", "call an ambulance"))
SETTINGS = {"temperature": 0.0, "max_tokens": 64}
FINDINGS = (
    "crushing", "chest", "pain", "spreading", "into", "left", "shoulder", "with", "sweating", "since", "yesterday",
    "evening",
)  # fmt: skip
RECORDS = [
    Record(
        f"r {i}",
        f"{30 + i} yo, {' '.join(FINDINGS[i % 4 : i % 4 + 3 + i % 6])}, lives alone",
        LABELS.values[i % 3],
        {"nurse": f"{FINDINGS[i % 4]} {FINDINGS[i % 4 + 1]} decides"},
        group=f"patient {i // 2}",
    )
    for i in range(24)
]


def rationale(i):
    """Words of the text, more of them with i, and some that are not there; every eighth record has none."""
    return "" if i % 8 == 7 else f"Because of {' '.join(FINDINGS[i % 4 : i % 4 + i % 7])} and general weakness."


def judge_for(server, log, model="rules", name=None, dialect="chat"):
    endpoint = Endpoint(server.base_url, model, dialect=dialect)
    limits = Limits(concurrency=8, read_timeout=5, deadline=10, attempts=2, backoff=0.01)
    return Judge(name or model, Client(endpoint, log, limits))


def pointwise(*names, settings=SETTINGS):
    rubric = load_rubric()
    prompts = load_prompt("judge"), load_prompt("judge_decision")
    return Pointwise(rubric.chosen(list(names)), rubric.version, *prompts, settings)


def pairwise(*names):
    rubric = load_rubric()
    prompts = load_prompt("judge_pairwise"), load_prompt("judge_pairwise_decision")
    return Pairwise(rubric.chosen(list(names)), rubric.version, *prompts, SETTINGS)
