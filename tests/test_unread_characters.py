"""Characters that a base cannot read or write are told before training, and a base that reads nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import Forks
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from toy import settings, write_toy
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.unread_characters import UnreadCharacters
from reason2decide.errors import BaseModelError
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,% "


def tokenizer(letters: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters, with one token for all others, as T5's has for "<"."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    built = Tokenizer(Unigram(pieces, unk_id=2))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def save_base(folder: Path, letters: str) -> Path:
    own = tokenizer(letters)
    own.save_pretrained(folder)
    shape: dict[str, int] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(own), decoder_start_token_id=0, **shape)).save_pretrained(folder)
    return folder


def test_characters_by_hand() -> None:
    unread = UnreadCharacters(tokenizer(LETTERS))
    assert unread.share() == 0 and not unread.counts()
    unread.add(["spo2 <90%", "~0 h, <1"])
    assert unread.counts() == {"<": 2, "~": 1}
    assert unread.share() == pytest.approx(3 / 14) and unread.in_words() == "21.4 % of the characters ('<' 2, '~' 1)"


def test_training_and_check_tell_what_the_base_cannot_read(
    shared_cases: Path, tmp_path: Path, forks: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    """F07: "SpO2 <90%" and "SpO2 >90%" look the same to the base."""
    source, columns = (
        shared_cases / "F07_less_than.csv",
        ("--text", "note", "--label", "label", "--rationale", "llm=reason"),
    )
    done = forks.run("data", "import", "table", source, "--out", tmp_path / "d", *columns)
    assert done.returncode == 0, done.stderr
    base = save_base(tmp_path / "base", LETTERS + "SO")
    done = forks.run("data", "check", tmp_path / "d", "--base", base)
    assert "the base cannot read or write" in done.stdout + done.stderr and "'<'" in done.stdout + done.stderr
    config = settings(DatasetFolder.open(tmp_path / "d"), base=str(base), steps=1, lengths={"input": 256, "label": 50})
    train(parse_config(config, "test"), tmp_path / "run")
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot read or write" in told and "'<'" in told and "'>'" in told


def test_a_base_that_reads_nothing_is_refused_before_a_run_folder(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "\u4e00\u4e8c")
    config = parse_config(settings(write_toy(tmp_path / "toy"), base=str(base)), "test")
    with pytest.raises(BaseModelError, match=r"cannot read 100\.0 % of the characters .*take one whose tokenizer"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
