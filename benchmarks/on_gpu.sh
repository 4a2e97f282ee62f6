#!/usr/bin/env bash
# What a GPU does with all of this, in at most nine minutes; everything printed is saved in OUT too.
#
#     OUT=runs/gpu bash benchmarks/on_gpu.sh                 # on synthetic calls
#     OUT=runs/gpu DATASET=runs/pubmedqa SOURCE=human bash benchmarks/on_gpu.sh
#     BASE=path/to/flan-t5-base ...                          # the methods from a pre-trained base besides
#     SHAPE=tiny BASES=tiny ...                              # on a processor, in a minute, to see that it runs
#
# Parts, the most telling first; one that fails or takes too long is named and the next begun. PARTS="bases compiled"
# runs these only.
set -u
OUT=${OUT:-runs/gpu} SHAPE=${SHAPE:-base} BATCH=${BATCH:-32} ROUNDS=${ROUNDS:-3} SOURCE=${SOURCE:-llm}
BASES=${BASES:-SmolLM2-135M Qwen3-0.6B flan-t5-base} PYTHON=${PYTHON:-python} CALLS=${CALLS:-2000}
export TOKENIZERS_PARALLELISM=true HF_HUB_OFFLINE=1
mkdir -p "$OUT"
here=$(dirname "$0")

part() { # seconds, name, command ...
  local limit=$1 name=$2
  shift 2
  [[ " ${PARTS:-$name} " == *" $name "* ]] || return 0
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.txt"
  local code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || echo "== $name ended with code $code" | tee -a "$OUT/failed.txt"
}

{
  date
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU"
  "$PYTHON" -c "import torch, transformers; print('torch', torch.__version__, 'transformers', transformers.__version__)"
} | tee "$OUT/machine.txt"

if [ -z "${DATASET:-}" ]; then
  DATASET=$OUT/calls
  [ -d "$DATASET" ] || "$PYTHON" -m reason2decide data synthesize --out "$DATASET" --train "$CALLS" > "$OUT/data.txt" 2>&1
fi
common=("$DATASET" --source "$SOURCE" --batch-size "$BATCH")

part 90 training "$PYTHON" "$here/training.py" "${common[@]}" --shape "$SHAPE" --rounds "$ROUNDS" --parts compare parts memory
part 50 one_pass "$PYTHON" "$here/one_pass.py" "${common[@]}" --shape "$SHAPE" --rounds "$ROUNDS"
part 70 inference "$PYTHON" "$here/inference.py" --folder "$OUT/inference" --shape "$SHAPE" --one-pass \
  --device "${DEVICE:-cuda}" --weights ${WEIGHTS:-float32} --parts labels batch-1 batch-8
part 60 bases "$PYTHON" "$here/bases.py" "${common[@]}" --bases $BASES --input 512 --steps 5
part 40 bases_one_pass "$PYTHON" "$here/bases.py" "${common[@]}" --bases $BASES --input 512 --steps 5 --layout one-pass
part 50 compiled "$PYTHON" "$here/bases.py" "${common[@]}" --bases ${BASES%% *} --input 512 --steps 5 --compile
if [ -n "${BASE:-}" ]; then
  part 170 methods "$PYTHON" -m reason2decide compare "$here/../experiments/pretrained.toml" --out "$OUT/methods" --jobs 1 \
    --set "training.dataset=$DATASET" --set "training.base=$BASE" --set "training.rationale_source=$SOURCE" \
    --set "evaluation.rationale_source=$SOURCE"
fi
[ ! -s "$OUT/failed.txt" ] || { cat "$OUT/failed.txt"; exit 1; }
