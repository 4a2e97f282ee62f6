"""What is learnt under a label that is not the gold one: by hand, and as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reason2decide.method.conditioning import target_for

LABELS = st.sampled_from(["home", "doctor", "ambulance"])


def test_targets_by_hand() -> None:
    contrasts = {"doctor": "It lasts."}
    for rule in ("gold", "skip", "contrast"):
        assert target_for("home", "home", "It is mild.", contrasts, rule) == "It is mild."
    assert target_for("doctor", "home", "It is mild.", contrasts, "gold") == "It is mild."
    assert target_for("doctor", "home", "It is mild.", contrasts, "skip") is None
    assert target_for("doctor", "home", "It is mild.", contrasts, "contrast") == "It lasts."
    assert target_for("ambulance", "home", "It is mild.", contrasts, "contrast") is None


@given(LABELS, LABELS, st.dictionaries(LABELS, st.text(min_size=1)))
def test_no_rationale_is_learnt_under_a_label_it_was_not_written_for(
    shown: str, gold: str, contrasts: dict[str, str]
) -> None:
    for rule in ("skip", "contrast"):
        target = target_for(shown, gold, "the gold one", contrasts, rule)
        assert target in ("the gold one" if shown == gold else None, contrasts.get(shown) if shown != gold else None)
