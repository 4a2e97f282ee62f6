"""Decision models of reason2decide for transformers: P(label | text), scored exactly, no text written.

transformers (5.23 or newer) runs this file when a model next to it is loaded with `trust_remote_code=True`. It imports
torch and transformers only; it opens no file and no connection.

A label's score is the total log-probability of its tokens, the end token included. The text is encoded once per
request, whatever the number of questions and labels, and its cross-attention keys and values are computed once.
`config.reason2decide` has what that takes:

    before, after   token ids around the text: special tokens and the words that ask for a label
    text_tokens     a longer text is cut at its end
    special_ids     tokens that no text may contain, such as an end token written in a note
    labels          label -> its token ids, end token last
    ordinal         whether the order of the labels means something
    yes_no          {"true": label, "false": label} if the labels are a yes and a no, else null
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    EncoderDecoderModel,
    MT5ForConditionalGeneration,
    T5ForConditionalGeneration,
)
from transformers.decision.modeling_utils import DecisionMixin, process_scores
from transformers.modeling_outputs import BaseModelOutput

LABELS_AT_ONCE = 32  # labels scored in one forward pass: bounds its logits


class LabelScores(DecisionMixin):  # type: ignore[misc]
    """`decide` for an encoder-decoder that was trained to write one of its labels."""

    @torch.no_grad()
    def decide(
        self,
        input_ids: torch.Tensor,
        marks: torch.Tensor,
        decision_questions: list[Any],
        decision_config: Any = None,
        **unused: Any,
    ) -> list[torch.Tensor]:
        """The score of each option of each question, divided by the temperature: their softmax is the answer.

        So the probabilities of a question that leaves labels out are the model's own, renormalised over its options.

        Args:
            input_ids: (1, tokens), the text alone, as the template of `decision.json` renders it.
            marks: where other heads read; not needed here.

        Raises:
            ValueError: there is no text, or an option is not a label of the model.
        """
        asked = [self._labels_of(question) for question in decision_questions]
        distinct = list(dict.fromkeys(label for labels in asked for label in labels))
        scores = dict(zip(distinct, self._score(input_ids[0].tolist(), distinct), strict=True))
        found = [torch.stack([scores[label] for label in labels]) for labels in asked]
        answers: list[torch.Tensor] = process_scores(
            decision_config or self.decision_config, input_ids, marks, decision_questions, found
        )
        return answers

    def _labels_of(self, question: Any) -> list[str]:
        """The labels that the options of a question stand for, in their order."""
        settings = self.config.reason2decide
        labels = list(settings["labels"])
        hint = f"; ask a 'choice' question whose options are some or all of this model's labels: {labels}"
        if question.type == "choice":
            unknown = [option for option in question.options if option not in labels]
            if unknown:
                raise ValueError(
                    f"{len(unknown)} of {len(question.options)} options are not labels of this model{hint}"
                )
            return list(question.options)
        if question.type == "noul":
            if settings["yes_no"] is None:
                raise ValueError(f"this model cannot answer a yes/no question{hint}")
            return [settings["yes_no"][option] for option in question.options]
        # A level is a label, or begins with one and a colon.
        levels = [
            next((label for label in labels if str(level) == label or str(level).startswith(f"{label}:")), None)
            for level in question.descriptions
        ]
        if not settings["ordinal"] or levels not in (labels, labels[::-1]):
            raise ValueError(
                f"a 'score' question needs a model with ordered labels, and all of them as levels, in order{hint}"
            )
        return [str(level) for level in levels]

    def _score(self, text: list[int], labels: list[str]) -> torch.Tensor:
        """Total log-probability of each label given the text, (labels,)."""
        settings = self.config.reason2decide
        text = [token for token in text if token not in settings["special_ids"]][: settings["text_tokens"]]
        if not text:
            raise ValueError("the state contains no text to decide on")
        prompt = torch.tensor([[*settings["before"], *text, *settings["after"]]], device=self.device)
        mask = torch.ones_like(prompt)
        states = self.get_encoder()(input_ids=prompt, attention_mask=mask).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def log_probs(decoder_input_ids: torch.Tensor) -> torch.Tensor:
            """Of the next token after each, (rows, tokens, vocabulary)."""
            rows = len(decoder_input_ids)
            output = self(
                encoder_outputs=BaseModelOutput(last_hidden_state=states.expand(rows, -1, -1)),
                attention_mask=mask.expand(rows, -1),
                decoder_input_ids=decoder_input_ids,
                past_key_values=cache,
                use_cache=True,
            )
            found: torch.Tensor = output.logits.float().log_softmax(-1)
            return found

        # The start token is read once for all labels; this also fills the cache of the text.
        start = log_probs(torch.tensor([[self.config.decoder_start_token_id]], device=self.device))
        scores = []
        for begin in range(0, len(labels), LABELS_AT_ONCE):
            targets = [torch.tensor(settings["labels"][label]) for label in labels[begin : begin + LABELS_AT_ONCE]]
            # Padded on the right: attention is causal, so padding changes nothing before it.
            ids = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-1).to(self.device)
            real, ids = ids >= 0, ids.clamp(min=0)
            _share(cache, len(ids))
            steps = torch.cat([start.expand(len(ids), -1, -1), log_probs(ids[:, :-1])], 1)
            log_prob = steps.gather(-1, ids[:, :, None]).squeeze(-1)
            scores.append(log_prob.masked_fill(~real, 0.0).sum(-1))
        return torch.cat(scores)


def _share(cache: EncoderDecoderCache, rows: int) -> None:
    """Give every row the same past: the text, and of the decoder the start token alone. Views, not copies."""
    for layer in cache.cross_attention_cache.layers:
        layer.keys, layer.values = (past[:1].expand(rows, -1, -1, -1) for past in (layer.keys, layer.values))
    for layer in cache.self_attention_cache.layers:
        layer.keys, layer.values = (past[:1, :, :1].expand(rows, -1, -1, -1) for past in (layer.keys, layer.values))


class T5ForDecision(LabelScores, T5ForConditionalGeneration):  # type: ignore[misc]
    """T5, v1.0 and v1.1 (flan-T5)."""


class MT5ForDecision(LabelScores, MT5ForConditionalGeneration):  # type: ignore[misc]
    """mT5."""


class BartForDecision(LabelScores, BartForConditionalGeneration):  # type: ignore[misc]
    """BART."""


class EncoderDecoderForDecision(LabelScores, EncoderDecoderModel):  # type: ignore[misc]
    """An encoder-decoder of two BERT-like models."""
