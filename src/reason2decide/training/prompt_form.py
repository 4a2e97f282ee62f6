"""How a base's prompts are put together: as the paper's, or text first, within a chat template where there is one."""

from __future__ import annotations

from typing import Any

from reason2decide.errors import BaseModelError
from reason2decide.method.prompts import PromptForm
from reason2decide.model.hub import first_line

PLACE = "reason2decide puts the text here"
# Templates that tell the date would differ from day to day; this one is the default of Llama's.
SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def prompt_form(model: Any, tokenizer: Any, base: str, *, one_pass: bool = False) -> PromptForm:
    """The task first for an encoder-decoder (paper); else the text, in the chat template of an instruction-tuned model.

    Raises:
        BaseModelError: the chat template cannot be rendered, or not with the text in it once.
    """
    if model.config.is_encoder_decoder:
        return PromptForm(one_pass=one_pass)
    if not getattr(tokenizer, "chat_template", None):
        return PromptForm(text_first=True, one_pass=one_pass)
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": PLACE}], tokenize=False, add_generation_prompt=True, **SETTINGS
        )
    except Exception as error:  # a template is a program
        raise BaseModelError(
            f"the chat template of {base!r} fails ({first_line(error)}); mend its chat_template.jinja, or remove it, "
            "and the base is trained as one without a template"
        ) from None
    if rendered.count(PLACE) != 1:
        raise BaseModelError(
            f"the chat template of {base!r} renders the user's text {rendered.count(PLACE)} times, expected once; mend "
            "its chat_template.jinja, or remove it, and the base is trained as one without a template"
        )
    head, tail = rendered.split(PLACE)
    if not tail:
        raise BaseModelError(
            f"the chat template of {base!r} begins no answer after the user's text; mend its chat_template.jinja, or "
            "remove it, and the base is trained as one without a template"
        )
    return PromptForm(text_first=True, one_pass=one_pass, head=head, tail=tail)
