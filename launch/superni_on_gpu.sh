#!/usr/bin/env bash
# All 15 SuperNI tasks on one model and one GPU, method after method and seed after seed, until the
# time is over; what has been begun can be gone on with:
#   launch/superni_on_gpu.sh MODEL_FOLDER CL_BENCHMARK_FOLDER OUTPUT_FOLDER SECONDS [options of sapt_jax.train]
#   METHODS="sapt per_task" SEEDS="0 1"    what to run; PYTHON=python  interpreter
#   AT_ONCE=9                              so many runs share the GPU, for small models
#   TASKS="task363 task591"                in this order
# Each run that ends adds a line to OUTPUT_FOLDER/results.jsonl. The exit code is 1 if one has failed, and 2 if one has refused its
# options: then no other begins.
set -euo pipefail
refuse() {
  echo "$*" >&2
  exit 2
}
(($# >= 4)) || refuse "usage: launch/superni_on_gpu.sh MODEL_FOLDER CL_BENCHMARK_FOLDER OUTPUT_FOLDER SECONDS [options]"
model=$(realpath -m "$1") data=$(realpath -m "$2") output=$(realpath -m "$3") seconds=$4
shift 4
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python} at_once=${AT_ONCE:-1}
[[ $seconds =~ ^[1-9][0-9]{1,8}$ && $seconds -gt 30 ]] || refuse "SECONDS $seconds: must be a whole number from 31 to 999999999"
[[ $at_once =~ ^[1-9][0-9]{0,3}$ ]] || refuse "AT_ONCE=$at_once: must be a whole number from 1 to 9999"
[[ -f $model/config.json ]] || refuse "$model: has no config.json, so it is no folder of a model"
[[ -d $data/SuperNI ]] || refuse "$data: has no folder SuperNI"
command -v "$python" >/dev/null || refuse "$python: no such program; give PYTHON=python"
end=$((SECONDS + seconds))
for name in METHODS SEEDS TASKS; do
  [[ ${!name-some} =~ [^[:space:]] ]] || refuse "$name=${!name@Q}: names nothing; leave it out for the usual ones"
done
mkdir -p "$output" 2>/dev/null || refuse "$output: no folder can be made there"
refused=$output/.refused
rm -f "$refused"
tasks=${TASKS:-$(ls "$data/SuperNI")}
if ((at_once > 1)); then # a quarter stays for NVIDIA's own libraries in each of them
  XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$(awk "BEGIN {print 0.75 / $at_once}")}
  export XLA_PYTHON_CLIENT_MEM_FRACTION
fi

learn() { # METHOD SEED SECONDS [options]
  local run=$output/$1.$2 code=0 line child
  # shellcheck disable=SC2086
  timeout --signal=TERM "$3" "$python" -m sapt_jax.train --config configs/superni_smollm2.py \
    --backbone.path "$model" --data.root "$data" --stream.tasks $tasks --backbone.dtype bfloat16 \
    --fit.steps 400 --generator.steps 200 --method.name "$1" --seed "$2" --output "$run" \
    "${@:4}" >"$run.log" 2>&1 &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM
  wait "$child" || code=$?
  while ((code > 128)) && kill -0 "$child" 2>/dev/null; do # a signal came, and was handed on
    code=0
    wait "$child" || code=$?
  done
  if ((code == 0)); then
    line=$("$python" -c 'import json, sys; s = json.load(open(sys.argv[1])); print(json.dumps({k: s[k] for k in ("method", "seed", "metrics", "wall_s")}))' "$run/scores.json")
    echo "$line" >>"$output/results.jsonl"
    echo "$line"
  elif ((code == 2)); then
    echo "refused: $1, seed $2: $(tail -n 1 "$run.log")" >&2
    touch "$refused"
  elif ((code != 75 && code != 124)); then
    echo "failed: $1, seed $2: $(tail -n 1 "$run.log")" >&2
    return 1
  fi
}

failed=0 begun=()
trap 'trap "" INT TERM; kill $(jobs -rp) 2>/dev/null; wait; exit 130' INT TERM
for seed in ${SEEDS:-0 1 2}; do
  for method in ${METHODS:-sapt per_task epi sequential}; do
    [[ -e $output/$method.$seed/scores.json ]] && continue
    while (($(jobs -rp | wc -l) >= at_once)); do sleep 1; done
    [[ ! -e $refused ]] || break 2
    left=$((end - SECONDS))
    ((left > 30)) || { echo "no time is left for $method, seed $seed" && break 2; }
    learn "$method" "$seed" "$left" "$@" &
    begun+=($!)
  done
done
for run in "${begun[@]}"; do wait "$run" || failed=1; done
if [[ -e $refused ]]; then
  rm "$refused"
  exit 2
fi
exit "$failed"
