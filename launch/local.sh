#!/usr/bin/env bash
# Several processes on this machine share one run (docs/cluster.md):
#   launch/local.sh PROCESSES [options of sapt_jax.train]
#   launch/local.sh 2 --output runs/two --mesh.data 2
#   DEVICES=1 PORT=47017 PYTHON=python    devices of each process; a free port; interpreter
# Each process takes the next DEVICES GPUs. On the CPU the devices are simulated. The script passes
# SIGTERM on. Its exit code is the greatest of all processes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
processes=${1:?usage: launch/local.sh PROCESSES [options of sapt_jax.train]}
shift
devices=${DEVICES:-1}
children=()
trap 'kill -TERM "${children[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES=$(seq -s, $((i * devices)) $(((i + 1) * devices - 1))) \
    "${PYTHON:-.venv/bin/python}" -m sapt_jax.train "$@" --distributed.address "127.0.0.1:${PORT:-47017}" \
    --distributed.processes "$processes" --distributed.process-id "$i" --distributed.local-devices "$devices" &
  children+=($!)
done
worst=0
for child in "${children[@]}"; do
  while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # a trapped signal ends wait early
  done
  ((code > worst)) && worst=$code
done
exit "$worst"
