"""Writing with guesses against one token a pass: how many tokens a pass gives, and the time, of a trained model.

    r2d export RUN/bundle --out runs/export --weights int8
    python benchmarks/guessing.py runs/export runs/calls [--records 100]

The reasons of test records, one at a time, both ways in turn for each; the first record is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.model.decoding import GREEDY
from reason2decide.model.engines.onnx import OnnxEngine
from reason2decide.model.predictor import Predictor
from reason2decide.model.writing import write_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--records", type=int, default=100)
    args = parser.parse_args()
    predictor = Predictor.load(args.export)
    engine, encoder = predictor.engine, predictor.encoder
    assert isinstance(engine, OnnxEngine), "give an export"
    passes, read = [0], engine._read

    def counted(*arguments: object) -> object:
        passes[0] += 1
        return read(*arguments)  # type: ignore[arg-type]

    engine._read = counted  # type: ignore[method-assign, assignment]
    ratios, tokens = [], [0, 0]
    for record in islice(DatasetFolder.open(args.dataset).split("test"), args.records + 1):
        (decision,) = predictor.decide([record])
        prompt = encoder.explain(encoder.text_ids([record.text])[0], decision.label)  # type: ignore[union-attr]
        most, found = encoder.lengths.rationale, []
        for way in range(2):
            engine._last.clear()
            passes[0], started = 0, time.perf_counter()
            if way:
                written = list(engine._write_alone(prompt, most))
            else:
                (written,) = write_all(engine._begun, [prompt], GREEDY, end=engine.file.end, max_tokens=most)
            found.append((written, time.perf_counter() - started, passes[0]))
        assert found[0][0] == found[1][0], "a guess changed what is written"
        ratios.append(found[0][1] / found[1][1])
        tokens = [tokens[0] + len(found[1][0]), tokens[1] + found[1][2]]
    first, median, third = statistics.quantiles(ratios[1:], n=4)
    print(f"{args.records} reasons, {tokens[0] / tokens[1]:.2f} tokens a pass, the same tokens")
    print(f"time without guesses / with: {median:.2f} (quartiles {first:.2f} to {third:.2f})")


if __name__ == "__main__":
    main()
