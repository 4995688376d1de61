#!/usr/bin/env bash
# The comparison on the mini stream in docs/results.md: every method, three seeds, then one report.
#   launch/mini_results.sh [FOLDER]            FOLDER: where the runs go (default runs/mini_results); started again, it continues
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-runs/mini_results}
python=${PYTHON:-.venv/bin/python}

for seed in 0 1 2; do
  alone=$folder/per_task-$seed
  "$python" -m sapt_jax.train --seed "$seed" --output "$alone" --method.name per_task --single ""
  "$python" -m sapt_jax.train --seed "$seed" --output "$folder/sequential-$seed" --method.name sequential --single "$alone"
  "$python" -m sapt_jax.train --seed "$seed" --output "$folder/sapt_routed-$seed" --single "$alone"
done
"$python" -m sapt_jax.report "$folder"/*-[0-9] --output "$folder/report"
