"""T5 span corruption on unlabelled text: for a hospital with many notes and few labels.

Spans of the text are replaced by sentinels and the model writes what they hid (Raffel et al. 2020, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from reason2decide.console import ProgressBar, say, warn
from reason2decide.data.records import JsonlRecords
from reason2decide.errors import BaseModelError, DataError
from reason2decide.files import new_folder
from reason2decide.method.losses import IGNORED
from reason2decide.training.base import SCRATCH, SENTINELS, load_base, silence_transformers
from reason2decide.training.config import Lengths
from reason2decide.training.features import PromptEncoder, TokenTable, Truncation


@dataclass(frozen=True)
class PretrainSettings:
    """How to pre-train; noise settings are T5's, the rest is ours."""

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    input_length: int = 512
    seed: int = 0


def corrupt_spans(
    ids: Sequence[int] | np.ndarray,
    sentinels: Sequence[int],
    rng: np.random.Generator,
    *,
    noise_density: float,
    mean_span_length: float,
) -> tuple[list[int], list[int]]:
    """Replace random spans by sentinels: (what is left, what was hidden), both with their sentinels in order.

    About `noise_density` of the tokens are hidden in spans of `mean_span_length` on average; between two spans at
    least one token is left. Joining the spans back at their sentinels gives the text again.
    """
    length = len(ids)
    hidden = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(hidden / mean_span_length), 1), hidden, length - hidden, len(sentinels))
    hidden_lengths, left_lengths = _parts(hidden, spans, rng), _parts(length - hidden, spans, rng)
    source: list[int] = []
    target: list[int] = []
    position = 0
    for sentinel, left, span in zip(sentinels, left_lengths, hidden_lengths, strict=False):
        source += [*(int(id) for id in ids[position : position + left]), sentinel]
        target += [sentinel, *(int(id) for id in ids[position + left : position + left + span])]
        position += left + span
    return source, target


def _parts(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`total` cut at random into `count` parts of at least one."""
    cuts = np.sort(rng.choice(np.arange(1, total), count - 1, replace=False)) if count > 1 else np.zeros(0, int)
    return [int(part) for part in np.diff(np.concatenate([[0], cuts, [total]]))]


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Texts of files: the lines of a `.txt`, the texts of the records of a `.jsonl`.

    Raises:
        DataError: a file is missing, of another kind or not UTF-8, or a line of a `.jsonl` is not a record.
    """
    for path in paths:
        if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
            raise DataError(f"{path} is not a .txt or .jsonl file; expected text, one note a line, or records")
        if path.suffix == ".jsonl":
            yield from (record.text for record in JsonlRecords(path))
            continue
        with path.open(encoding="utf-8-sig") as stream:
            try:
                yield from (line.strip() for line in stream if line.strip())
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8 ({error.reason}); convert it first, for instance by iconv"
                ) from None


def read_words(paths: Sequence[Path]) -> Iterator[str]:
    """Everything in the records of `.jsonl` files that a model may have to read or write: text, label, rationales.

    Raises:
        DataError: as `read_texts`.
    """
    for path in paths:
        for record in JsonlRecords(path):
            yield from (record.text, record.label or "", *record.rationales.values())


def pretrain(
    paths: Sequence[Path],
    base: str,
    out: Path,
    settings: PretrainSettings,
    *,
    vocabulary_from: Sequence[Path] = (),
    half: bool = False,
    force: bool = False,
) -> Path:
    """Pre-train `base` on the texts of `paths` and save it as a folder that `base = "..."` takes.

    Args:
        vocabulary_from: records whose words the tokenizer of `tiny` should know besides; nothing is learnt of them.
        half: save bfloat16 weights, which take half the space (they are trained in float32).

    Raises:
        DataError: there are no texts of at least two tokens.
        BaseModelError: as `base.load_base`, or the tokenizer has no sentinels.
        OutputError: `out` exists and `force` is false.
    """
    silence_transformers()
    if vocabulary_from and base != SCRATCH:
        raise BaseModelError(f"the base {base!r} has a tokenizer of its own; --vocabulary-from is for {SCRATCH!r} only")
    with new_folder(out, "config.json", force=force) as folder:
        model, tokenizer = load_base(
            base, texts=lambda: chain(read_texts(paths), read_words(vocabulary_from)), seed=settings.seed
        )
        sentinels = list(tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)]))
        if None in sentinels or tokenizer.unk_token_id in sentinels:
            raise BaseModelError(f"the tokenizer of {base!r} has no <extra_id_0> ... sentinels; give a T5 or tiny")
        encoder = PromptEncoder(tokenizer, Lengths(input=settings.input_length))
        cuts = Truncation()
        table = TokenTable.write(folder / "texts", _token_rows(paths, encoder, cuts))
        if not len(table):
            raise DataError(f"{', '.join(map(str, paths))} hold no text to learn from; give files with a note a line")
        if cuts.cut:
            warn(f"{cuts} texts were cut; raise --input-length to keep them whole")
        say(f"pre-training {base} on {len(table)} texts of {table.lengths.mean():.0f} tokens on average")
        trainer = _SpanTrainer(model, tokenizer, table, sentinels, encoder.after, settings, folder)
        try:
            trainer.train()
        finally:
            trainer.progress.close()
        for file in folder.glob("texts*"):
            file.unlink()
        (model.to(torch.bfloat16) if half else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    say(f"pre-trained base: {out}")
    return out


def _token_rows(paths: Sequence[Path], encoder: PromptEncoder, cuts: Truncation) -> Iterator[list[int]]:
    """Token ids of every text of at least two tokens, cut to the input length."""
    for text in read_texts(paths):
        ids = encoder.text_ids([text])[0]
        if len(ids) > 1:
            cuts.count(len(ids) > encoder.lengths.input)
            yield ids[: encoder.lengths.input]


class _Progress(TrainerCallback):  # type: ignore[misc]
    """The progress bar, and the loss at the last step."""

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None

    def close(self) -> None:
        """End the bar, which gives the terminal its cursor back."""
        if self.bar is not None:
            self.bar.__exit__()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = ProgressBar("pretrain", state.max_steps, "steps").__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.bar is not None
        self.bar.advance()
        control.should_log |= state.global_step >= state.max_steps


class _SpanTrainer(Trainer):  # type: ignore[misc]
    """The Trainer over corrupted spans; each text is corrupted anew each time it is seen."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        table: TokenTable,
        sentinels: Sequence[int],
        after: Sequence[int],
        settings: PretrainSettings,
        folder: Path,
    ) -> None:
        rng = np.random.default_rng(settings.seed)
        pad = tokenizer.pad_token_id
        progress = self.progress = _Progress()

        def collate(rows: list[np.ndarray]) -> dict[str, Any]:
            noise = {"noise_density": settings.noise_density, "mean_span_length": settings.mean_span_length}
            pairs = [corrupt_spans(row, sentinels, rng, **noise) for row in rows]
            sources = [torch.tensor([*source, *after]) for source, _ in pairs]
            targets = [torch.tensor([*target, *after]) for _, target in pairs]
            input_ids = pad_sequence(sources, batch_first=True, padding_value=pad)
            lengths = torch.tensor([len(source) for source in sources])
            return {
                "input_ids": input_ids,
                "attention_mask": (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long(),
                "labels": pad_sequence(targets, batch_first=True, padding_value=IGNORED),
            }

        super().__init__(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                max_steps=settings.steps,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=settings.steps // 50,
                seed=settings.seed,
                logging_steps=max(1, settings.steps // 50),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=table,
            data_collator=collate,
            callbacks=[progress],
        )
        self.remove_callback(PrinterCallback)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Show the loss beside the progress."""
        if "loss" in logs:
            say(f"step {self.state.global_step}: loss {logs['loss']:.3f}")
