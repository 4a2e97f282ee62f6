"""Nothing is lost: kills, signals, full disks, damaged checkpoints, two trainings at once, through the real program."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forks import Forks, Group
from toy import record, settings

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet
from reason2decide.errors import Interrupted
from reason2decide.model.manifest import read_manifest
from reason2decide.signals import StopSignals
from reason2decide.training.run_folder import run_folder

STEPS = {"stage1": 12, "stage2": 16}
RUN = {
    "steps": STEPS,
    "checkpoint_every": 3,
    "evaluate_every": 4,
    "keep_checkpoints": 100,
    "dropout": 0.1,
    "ramp_share": 0.3,
    "patience": 100,
}


@pytest.fixture(scope="module")
def config(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tomli_w

    file = tmp_path_factory.mktemp("crashes") / "train.toml"
    file.write_text(tomli_w.dumps(settings(dataset, **RUN)))
    return file


@pytest.fixture(scope="module")
def whole(forks: Forks, config: Path) -> Path:
    """A run that nothing interrupted."""
    run = config.parent / "whole"
    ended = forks.run("--quiet", "train", config, "--out", run)
    assert ended.returncode == 0, ended.stderr
    (run / "seconds").write_text(str(ended.seconds))
    return run


def weights(run: Path) -> bytes:
    return (run / "bundle" / "model" / "model.safetensors").read_bytes()


def same_result(run: Path, whole: Path) -> None:
    """Bitwise the weights of the uninterrupted run, and a log without gaps or repeats."""
    assert weights(run) == weights(whole)
    assert read_manifest(run / "bundle").training == read_manifest(whole / "bundle").training
    for event in ("train", "validation"):
        steps = [
            [
                (row["stage"], row["step"])
                for row in map(json.loads, (one / "log.jsonl").open())
                if row["event"] == event
            ]
            for one in (run, whole)
        ]
        assert steps[0] == steps[1]
    assert not [path for path in run.rglob(".*") if path.name != ".lock"], "temporary files are left"


def test_killed_at_20_random_points_and_resumed(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    """Killed without warning twenty times, at any moment of either stage; whenever a run ends, it is the whole one."""
    seconds, random_point = float((whole / "seconds").read_text()), random.Random(0)
    kills, stages, ends = 0, set(), 0
    run = tmp_path / "run"
    while kills < 20 or run.exists():
        after = random_point.uniform(0.0, 0.8 * seconds) if kills < 20 else 1e9
        ended = forks.run("train", config, "--out", run, "--resume", "auto", send=signal.SIGKILL, after=after)
        stages |= {path.parent.name for path in run.glob("*/checkpoint-*")}
        if ended.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert ended.returncode == 0, ended.stderr
        same_result(run, whole)
        shutil.rmtree(run)
        ends += 1
    assert ends and stages == {"stage1", "stage2"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, forks: Forks, config: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # After step 6 has a checkpoint and before step 9 has one.
    ended = forks.run("train", config, "--out", run, send=number, when=run / "stage1" / "checkpoint-6")
    assert ended.returncode == 128 + number and "Traceback" not in ended.stderr
    command = f"r2d train {config} --out {run} --resume auto"
    assert command in ended.stderr and "interrupted; saved stage1 at step" in ended.stderr
    resumed = forks.run(*command.split()[1:])
    assert resumed.returncode == 0 and f"resuming from {run / 'stage1' / 'checkpoint-'}" in resumed.stderr
    same_result(run, whole)
    again = forks.run("train", config, "--out", run, "--resume", "auto")
    assert again.returncode == 0 and "complete; nothing is left to train" in again.stderr


def test_a_signal_that_comes_while_stages_end_is_heeded() -> None:
    """Recorded before the last look at it, it stops the run there; later ones take effect at once."""
    # As a shell leaves it, however the tests were started.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="interrupted; all stages are trained") as stopped:
            signals.heed("all stages are trained")
        assert stopped.value.exit_code == 143
    with StopSignals() as signals:
        signals.heed("nothing has come")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_full_disk_leaves_the_last_checkpoint_intact(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    """Files that may not grow over a megabyte stand for a disk without room."""
    run = tmp_path / "run"
    stopped = forks.run("train", config, "--out", run, send=signal.SIGTERM, when=run / "stage2" / "checkpoint-3")
    assert stopped.returncode == 143
    checkpoints = sorted(run.glob("*/checkpoint-*"))
    full = forks.run("train", config, "--out", run, "--resume", "auto", limits=[(resource.RLIMIT_FSIZE, 2**20)])
    assert full.returncode == 2 and "the disk is full" in full.stderr and "Traceback" not in full.stderr
    assert "--resume auto" in full.stderr and sorted(run.glob("*/checkpoint-*")) == checkpoints
    assert forks.run("train", config, "--out", run, "--resume", "auto").returncode == 0
    same_result(run, whole)


def copy_of(whole: Path, tmp_path: Path) -> Path:
    """The whole run without its end: as if it had been killed in Stage 2."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "bundle")
    for path in run.glob("stage2/checkpoint-*"):
        if int(path.name.split("-")[1]) > 9:
            shutil.rmtree(path)
    return run


def test_what_a_killed_program_left_is_removed(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    """Ours, and what safetensors leaves when it is killed while it writes the best weights."""
    run = copy_of(whole, tmp_path)
    for name in (".best.safetensors.partial-abc", ".tmpiEHyN1"):
        (run / "stage2" / name).write_bytes(b"half")
    assert forks.run("train", config, "--out", run, "--resume", "auto").returncode == 0
    same_result(run, whole)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        ("missing", "model.safetensors"),
        ("truncated", "optimizer.safetensors"),
        ("one byte", "model.safetensors"),
        ("one byte", "optimizer.safetensors"),
        ("manifest", "model.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_refused(
    damage: str, file: str, forks: Forks, config: Path, whole: Path, tmp_path: Path
) -> None:
    run = copy_of(whole, tmp_path)
    newest = run / "stage2" / "checkpoint-9"
    content = bytearray((newest / file).read_bytes())
    if damage == "missing":
        (newest / file).unlink()
    elif damage == "truncated":
        (newest / file).write_bytes(content[:-1])
    elif damage == "one byte":
        content[len(content) // 2] ^= 1
        (newest / file).write_bytes(content)
    else:
        (newest / "manifest.json").write_text((newest / "manifest.json").read_text()[:-5])
    named = "manifest.json" if damage == "manifest" else file
    refused = forks.run("train", config, "--out", run, "--resume", newest)
    assert refused.returncode == 2 and str(newest) in refused.stderr and named in refused.stderr
    assert "Traceback" not in refused.stderr
    if damage in ("truncated", "manifest"):
        return  # what the search for the newest sound checkpoint does is the same for all kinds of damage
    passed_over = forks.run("train", config, "--out", run, "--resume", "auto")
    assert passed_over.returncode == 0 and "skipped" in passed_over.stderr and named in passed_over.stderr
    assert f"resuming from {run / 'stage2' / 'checkpoint-6'}" in passed_over.stderr
    same_result(run, whole)


def test_resume_from_a_named_checkpoint(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    """An early one of Stage 1, though later ones are there."""
    run = copy_of(whole, tmp_path)
    ended = forks.run("train", config, "--out", run, "--resume", run / "stage1" / "checkpoint-3")
    assert ended.returncode == 0 and "stage1: 12 steps, from step 3" in ended.stderr
    same_result(run, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("learning_rate=0.5", "stage1.learning_rate was 0.001, now 0.5"),
        ("seed=9", "seed was 0, now 9"),
        ("steps.stage2=17", "stage2.steps was 16, now 17"),
        ("optimizer=adafactor", "optimizer was adamw, now adafactor"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    change: str, said: str, forks: Forks, config: Path, whole: Path
) -> None:
    ended = forks.run("train", config, "--out", whole, "--set", change, "--resume", "auto")
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr


def test_what_comes_after_a_checkpoint_may_change(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    """Stage 1 has ended: another Stage 2, and another run, may go on from it, but no other Stage 1."""
    changed = ["--set", "steps.stage2=6", "--set", "patience.stage2=7"]
    run = tmp_path / "run"
    first = forks.run("train", config, "--out", run, *changed, "--first-stage-of", whole)
    assert first.returncode == 0 and "stage1: 12 steps, from step 12" in first.stderr
    alone = forks.run("train", config, "--out", tmp_path / "alone", *changed)
    assert alone.returncode == 0
    assert weights(run) == weights(tmp_path / "alone")
    same_result(run, tmp_path / "alone")
    for other in (["--set", "learning_rate.stage1=0.5"], ["--set", "seed=3"]):
        refused = forks.run("train", config, "--out", tmp_path / "x", *other, "--first-stage-of", whole)
        assert (
            refused.returncode == 2 and "belongs to another run" in refused.stderr and "Traceback" not in refused.stderr
        )
    unfinished = forks.run("train", config, "--out", tmp_path / "y", "--first-stage-of", tmp_path / "nothing")
    assert unfinished.returncode == 2 and "has no finished stage1" in unfinished.stderr
    # What is refused leaves the run that it would have replaced.
    before = weights(run)
    for source, said in ((tmp_path / "nothing", "has no finished stage1"), (run, "is this run itself")):
        refused = forks.run("train", config, "--out", run, *changed, "--first-stage-of", source, "--force")
        assert refused.returncode == 2 and said in refused.stderr and weights(run) == before
    chosen = ["--resume", run / "stage2" / "checkpoint-6", "--first-stage-of", whole]
    refused = forks.run("train", config, "--out", run, *changed, *chosen)
    assert refused.returncode == 2 and "give one of them" in refused.stderr


def test_a_run_killed_while_it_begins_is_resumed_or_replaced(
    forks: Forks, config: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed between taking over another run's stage and describing its own; on a disk too full to describe it."""
    changed = ["--set", "steps.stage2=6", "--first-stage-of", whole]
    for written, more in ((None, ["--resume", "auto"]), ("", ["--resume", "auto"]), ("", ["--force"])):
        run = tmp_path / f"run {written} {more[0]}"
        with run_folder(run, tmp_path / "data", force=False):
            shutil.copytree(whole / "stage1", run / "stage1")
            shutil.copy(whole / "log.jsonl", run)
            (run / "stage2" / "checkpoint-6").mkdir(parents=True)  # damaged: it has no manifest
        if written is not None:
            (run / "run.json").write_text(written)
        ended = forks.run("train", config, "--out", run, *changed, *more)
        assert ended.returncode == 0, ended.stderr
        assert json.loads((run / "run.json").read_text())["versions"] and (run / "bundle").is_dir()


def test_a_checkpoint_of_other_data_is_refused(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    labels = LabelSet(("home care", "see a doctor", "call an ambulance"))
    other = write_dataset(
        tmp_path / "other",
        DatasetInfo("other", "triage", labels, ("llm",)),
        {"train": [record(i) for i in range(50)], "validation": [record(i) for i in range(50, 60)]},
    )
    ended = forks.run("train", config, "--out", whole, "--set", f"dataset={other.path}", "--resume", "auto")
    assert ended.returncode == 2 and "data.train was" in ended.stderr
    elsewhere = forks.run("train", config, "--out", tmp_path / "x", "--resume", whole / "stage1" / "checkpoint-3")
    assert elsewhere.returncode == 2 and "is not a checkpoint of the run" in elsewhere.stderr
    none = forks.run("train", config, "--out", whole, "--resume", whole / "stage1" / "checkpoint-4")
    assert none.returncode == 2 and "there is no such folder" in none.stderr


def test_run_folders_that_are_refused(forks: Forks, config: Path, whole: Path, tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        ended = forks.run("train", config, "--out", *options)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        return ended.stderr

    before = sorted(whole.rglob("*"))
    assert "is complete; give another path, or --force" in refused(whole)
    assert "give only one of the two" in refused(whole, "--resume", "auto", "--force")
    assert sorted(whole.rglob("*")) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for options in ((), ("--force",), ("--resume", "auto")):
        assert "contains files but not a run" in refused(other, *options)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert "is a file" in refused(other / "thesis.tex")
    broken_off = forks.run(
        "train", config, "--out", tmp_path / "run", send=signal.SIGKILL, when=tmp_path / "run/log.jsonl"
    )
    assert broken_off.returncode == -signal.SIGKILL
    assert "was interrupted: --resume auto continues it" in refused(tmp_path / "run")


def test_a_second_training_in_one_run_folder_is_refused(config: Path, group: Group, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = group.members
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(
            first.run,
            "train",
            config,
            "--out",
            run,
            "--set",
            "steps=100000",
            send=signal.SIGTERM,
            when=tmp_path / "end",
        )
        while not list(run.glob("stage1/checkpoint-*")):
            time.sleep(0.05)
        for option in ("--resume=auto", "--force"):
            ended = second.run("train", config, "--out", run, option, "--set", "steps=100000")
            assert ended.returncode == 2 and "another training is running" in ended.stderr
        (tmp_path / "end").touch()
        assert going_on.result(60).returncode == 143
