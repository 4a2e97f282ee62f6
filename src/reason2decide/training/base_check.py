"""A base tries everything once, in seconds, before anything is trained: what fails is named with what to do."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reason2decide.console import say
from reason2decide.errors import BaseModelError
from reason2decide.method.losses import IGNORED, token_log_likelihood
from reason2decide.method.prompts import Candidate
from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.kinds import architecture_of, auto_class
from reason2decide.model.decoding import GREEDY
from reason2decide.model.engines.torch import TorchRows
from reason2decide.model.hub import first_line
from reason2decide.model.label_scores import score_labels
from reason2decide.model.padding import padded
from reason2decide.model.prompt_encoder import PromptEncoder, TokenIds, TokenPrompt
from reason2decide.model.writing import write
from reason2decide.training.base import blank_copy, load_weights

TOKENS_READ = 64  # ours: of each text
LABELS_SCORED, TOKENS_WRITTEN = 4, 3  # ours
TOLERANCE = 1e-3  # ours: relative, between two ways of computing a log-probability in float32


def check_base(model: Any, encoder: PromptEncoder, texts: Sequence[TokenIds], labels: Sequence[str], base: str) -> None:
    """Take the gradient of a loss, score labels in two ways, write, save and load; leave the model as it was.

    Labels are scored for all texts together, through caches, and compared with one pass over each text alone: where
    padding leaks or a cache is wrong, the two differ.

    Args:
        texts: token ids of a few texts, best of different lengths.
        labels: at least one.
        base: its name, for messages.

    Raises:
        BaseModelError: something fails, or gives other numbers the second time.
    """
    check = _BaseCheck(model, encoder, [text[:TOKENS_READ] for text in texts], labels[:LABELS_SCORED], base)
    was_training = model.training
    with torch.random.fork_rng():
        with check.step("a training step"):
            check.train()
        model.eval()
        with torch.no_grad():
            with check.step("scoring labels"):
                scores = check.score()
            with check.step("writing"):
                check.write()
            with check.step("saving and loading"):
                check.save_and_load(scores)
    model.train(was_training)
    say(f"base: trained, scored, wrote, saved and loaded once; {model.num_parameters():,} parameters")


class _BaseCheck:
    def __init__(
        self, model: Any, encoder: PromptEncoder, texts: Sequence[TokenIds], labels: Sequence[str], base: str
    ) -> None:
        self.model, self.encoder, self.base = model, encoder, base
        self.prompts = [encoder.decide(text) for text in texts]
        self.candidates = encoder.candidates(labels)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Name the step that fails, whatever the library raises."""
        try:
            yield
        except BaseModelError:
            raise
        except Exception as error:  # foreign code
            raise BaseModelError(
                f"the base {self.base!r} was tried before training, and {what} failed ({type(error).__name__}: "
                f"{first_line(error)}); take another base, such as one of docs/bases.md"
            ) from None

    def train(self) -> None:
        """The gradient of one label's loss: finite, and not nothing."""
        logs = _teacher_forced(self._architecture(self.model), self.prompts[0], self.candidates[0])
        (-logs).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.model.zero_grad(set_to_none=True)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise self._wrong("the gradient of a label's loss has values that are not finite numbers")
        if not any(bool(gradient.any()) for gradient in gradients):
            raise self._wrong("no weight has a gradient")

    def score(self) -> list[Tensor]:
        """Scores of the labels given each text, compared with passes over each text alone."""
        architecture = self._architecture(self.model)
        scores = self._scores(architecture)
        for prompt, own in zip(self.prompts, scores, strict=True):
            for candidate, score in zip(self.candidates, own, strict=True):
                alone = _teacher_forced(architecture, prompt, candidate)
                if not torch.isclose(score, alone, rtol=TOLERANCE, atol=TOLERANCE):
                    raise self._wrong(
                        f"a label's log-probability is {float(score):.4f} beside other texts and {float(alone):.4f} "
                        "alone: its attention sees padding, or its cache differs from what it read"
                    )
        return scores

    def write(self) -> None:
        """A few tokens."""
        architecture = self._architecture(self.model)
        lead = self.encoder.explain([], None).lead
        rows = TorchRows(architecture, architecture.read([self.prompts[0].text]), [lead])
        for _ in write(rows, None, GREEDY, end=self.encoder.tokenizer.eos_token_id, max_tokens=TOKENS_WRITTEN):
            pass

    def save_and_load(self, scores: Sequence[Tensor]) -> None:
        """Save the model, load it as a checkpoint and as a bundle are loaded, and score again each time."""
        blank = blank_copy(self.model)
        load_weights(blank, {name: weight.detach() for name, weight in self.model.named_parameters()})
        self._require_same(scores, blank)
        del blank
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            loaded = auto_class(self.model.config).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
        self._require_same(scores, loaded)

    def _require_same(self, scores: Sequence[Tensor], loaded: Any) -> None:
        again = self._scores(self._architecture(loaded.to(self.model.device).eval()))
        for before, after in zip(scores, again, strict=True):
            if not torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE):
                raise self._wrong(
                    "saved and loaded, it gives other log-probabilities: weights that it shares between layers are "
                    "not restored"
                )

    def _scores(self, architecture: Architecture) -> list[Tensor]:
        reading = architecture.read([prompt.text for prompt in self.prompts])
        leads = [prompt.lead for prompt in self.prompts]
        return score_labels(architecture, reading, leads, [self.candidates] * len(self.prompts))

    def _architecture(self, model: Any) -> Architecture:
        return architecture_of(model, self.encoder.tokenizer.pad_token_id)

    def _wrong(self, what: str) -> BaseModelError:
        return BaseModelError(
            f"the base {self.base!r} was tried before training, and {what}; take another base, such as one of "
            "docs/bases.md"
        )


def _teacher_forced(architecture: Architecture, prompt: TokenPrompt, candidate: Candidate) -> Tensor:
    """log P(candidate | prompt) by one pass over this text alone."""
    given = (*architecture.start, *prompt.lead)
    device = architecture.model.device
    ids, _ = padded([[*given, *candidate[:-1]]], 0, device)
    targets, _ = padded([[*[IGNORED] * (len(given) - 1), *candidate]], IGNORED, device)
    logits, _ = architecture.learn([prompt.text], ids)
    return token_log_likelihood(logits, targets).sum()
