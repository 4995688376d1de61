#!/usr/bin/env bash
# All 15 SuperNI tasks on one model and one GPU, method after method and seed after seed, until the
# time is over; what has been begun can be gone on with:
#   launch/superni_on_gpu.sh MODEL_FOLDER CL_BENCHMARK_FOLDER OUTPUT_FOLDER SECONDS [options of sapt_jax.train]
#   METHODS="sapt per_task" SEEDS="0 1"    what to run; PYTHON=python  interpreter
# Each run that ends adds a line to OUTPUT_FOLDER/results.jsonl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage="usage: launch/superni_on_gpu.sh MODEL_FOLDER CL_BENCHMARK_FOLDER OUTPUT_FOLDER SECONDS [options]"
model=${1:?$usage} data=${2:?$usage} output=${3:?$usage} end=$((SECONDS + ${4:?$usage}))
shift 4
python=${PYTHON:-.venv/bin/python}
mkdir -p "$output"
tasks=$(ls "$data/SuperNI")
for seed in ${SEEDS:-0 1 2}; do
  for method in ${METHODS:-sapt per_task epi sequential}; do
    run=$output/$method.$seed left=$((end - SECONDS)) code=0
    [[ -e $run/scores.json ]] && continue
    ((left > 30)) || exit 0
    # The pseudo inputs of a seed are the same in every run, so they are generated once.
    pseudo=()
    [[ $method != sapt && -e $output/sapt.$seed/scores.json ]] && pseudo=(--generator.folder "$output/sapt.$seed/pseudo_inputs")
    # shellcheck disable=SC2086
    timeout --signal=TERM "$left" "$python" -m sapt_jax.train --config configs/superni_smollm2.py \
      --backbone.path "$model" --data.root "$data" --stream.tasks $tasks --backbone.dtype bfloat16 \
      --fit.steps 400 --generator.steps 200 --method.name "$method" --seed "$seed" --output "$run" \
      "${pseudo[@]}" "$@" >"$run.log" 2>&1 || code=$?
    if ((code == 0)); then
      "$python" -c 'import json, sys; s = json.load(open(sys.argv[1])); print(json.dumps({k: s[k] for k in ("method", "seed", "metrics", "wall_s")}))' \
        "$run/scores.json" | tee -a "$output/results.jsonl"
    elif ((code != 75 && code != 124)); then
      echo "failed: $method, seed $seed: $(tail -n 1 "$run.log")" >&2
    fi
  done
done
