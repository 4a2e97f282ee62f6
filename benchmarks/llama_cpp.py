"""Does llama.cpp say what a decoder-only bundle says? Its reasons for the bundle's decisions, and log-probabilities.

    python convert_hf_to_gguf.py RUN/bundle/model --outtype f32 --outfile model.gguf     # of llama.cpp's sources
    python benchmarks/llama_cpp.py RUN/bundle DATASET model.gguf [--records 8]

The bundle must have a chat template. llama.cpp's chat interface is asked for the label, and for the reason of the label
that the bundle decides; its own interface, by the same tokens, for the log-probabilities of the label's first token.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.method.prompts import PREDICT_PREFIX, body, explain_prefix
from reason2decide.model.predictor import Predictor

LIKELY = 20  # tokens whose log-probabilities are compared
LEAST = -8.0  # of those, none that are less probable


def ask(url: str, **content: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    return json.load(urllib.request.urlopen(request))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--records", type=int, default=8)
    told = parser.parse_args()
    set_quiet(True)
    predictor = Predictor.load(told.bundle)
    encoder, model = predictor.encoder, predictor.bundle.model  # type: ignore[attr-defined]
    records = list(DatasetFolder.open(told.dataset).split("test"))[: told.records]
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.use_jinja = str(told.gguf), True
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 2048, 1, 1
    server = xllamacpp.Server(parameters)
    same, labels, apart = 0, 0, 0.0
    for record, own in zip(records, predictor.predict(records), strict=True):

        def said(task: str, tokens: int, text: str = record.text) -> str:
            message = {"role": "user", "content": f"{text.strip()}\n{task}"}
            url = f"{server.listening_address}/v1/chat/completions"
            answer = ask(url, messages=[message], temperature=0, max_tokens=tokens)
            return str(answer["choices"][0]["message"]["content"]).strip()

        reason = said(explain_prefix(own.predicted_label), encoder.lengths.rationale)
        same += reason == (own.rationale or "").strip()
        labels += said(PREDICT_PREFIX, encoder.lengths.label) == own.predicted_label
        prompt = encoder.decide(encoder.text_ids([body(record.text, record.choices)])[0])
        ids = [*map(int, prompt.text), *prompt.lead]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        url = f"{server.listening_address}/completion"
        found = ask(url, prompt=ids, n_predict=1, temperature=0, n_probs=LIKELY, cache_prompt=False)
        top = found["completion_probabilities"][0]["top_logprobs"]
        gaps = [abs(float(expected[token["id"]]) - token["logprob"]) for token in top if token["logprob"] > LEAST]
        apart = max(apart, *gaps)
    print(f"{same} of {len(records)} reasons are the same, {labels} answers are the label decided")
    print(f"log-probabilities of the next token differ by at most {apart:.3f}", flush=True)
    os._exit(0)  # the server does not end by itself


if __name__ == "__main__":
    main()
