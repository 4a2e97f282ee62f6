"""The prompts sent to language models: files of the package or of the user, filled without surprises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reason2decide.llm.prompt_files import Prompt, PromptError, fence, fence_nonce, load_prompt, prompt_names

# --- prompts ----------------------------------------------------------------------------------------------------------


def test_slots_are_filled_once_and_braces_are_harmless():
    prompt = Prompt("p", "1", "Data stands behind {nonce}.", 'Given {label}: {text} Answer {"label": "..."}')
    system, user = prompt.messages({"text": "{label} {nonce} {} }{"}, {"label": "{text}"})
    nonce = system["content"].split()[3].rstrip(".")
    fenced = f"<<<DATA {nonce}\n{{label}} {{nonce}} {{}} }}{{\nDATA {nonce}>>>"
    assert user["content"] == f'Given {{text}}: {fenced} Answer {{"label": "..."}}'
    assert prompt.slots() == {"label", "text"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3), st.text())
def test_no_text_closes_its_fence(texts, version):
    nonce = fence_nonce(version, texts)
    assert nonce == fence_nonce(version, texts) and len(nonce) == 32
    # The one attack: put in the nonce that was seen before. It is another one then.
    forged = [fence(texts[0], nonce), *texts[1:]]
    assert fence_nonce(version, forged) != nonce
    assert fence_nonce(version + "x", texts) != nonce
    assert fence_nonce(version, [*texts, ""]) != nonce
    assert all(fence_nonce(version, forged) not in text for text in forged)


def test_prompts_come_from_the_package_or_the_users_folder(tmp_path):
    original = load_prompt("ping", tmp_path)
    assert original.full_version == "ping/2" and "ping" in prompt_names() and original.slots() == {"text"}
    own = tmp_path / "ping.toml"
    own.write_text("name = 'ping'\nversion = 'mine'\nsystem = ''\nuser = 'Count {text}'\n")
    assert [m["role"] for m in load_prompt("ping", tmp_path).messages({"text": "a"})] == ["user"]
    for text, problem in [
        ("name = 'ping'\nversion = '2'\nsystem = ''\nuser = 'Count {words}'\n", "must have the package's slots text"),
        ("name = 'ping'\nversion = '2'\nsystem = ''\nuser = 'Count {text}'\n", "version other than the package's"),
        ("name = 'pong'\nversion = '2'\nsystem = ''\nuser = 'Count {text}'\n", "it must be 'ping'"),
        ("name = 'ping'\nversion = 2\nsystem = ''\nuser = 'Count {text}'\n", "all of them text"),
        ("name = ping", "not valid TOML"),
    ]:
        own.write_text(text)
        with pytest.raises(PromptError, match=problem):
            load_prompt("ping", tmp_path)
    with pytest.raises(PromptError, match=r"expected one of .*\bping\b"):
        load_prompt("pingpong")
