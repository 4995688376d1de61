#!/usr/bin/env bash
# The runs behind docs/results.md, one at a time, each collected into docs/results/ as it ends.
# Started again, it makes what is missing. docs/protocol.md says what is fair and how rates are tuned.
#   launch/results.sh tune-lora             tuning; tune-prompt for soft prompts
#   launch/results.sh mini-lora             the methods, three seeds each, at the rates found;
#                                           mini-prompt for soft prompts
#   launch/results.sh mini-fresh-lora       the same with new blocks that start fresh
#   JOBS=2 PYTHON=python                    runs at a time; interpreter
#   ONLY="epi mocl"                         these rows alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHON=${PYTHON:-.venv/bin/python}
table=${1:?name a table: tune-lora, tune-prompt, mini-lora, mini-prompt, mini-fresh-lora}
kind=${table##*-}

# One run: TABLE ROW SEED OPTIONS.
run() {
  local name=$1.$2.$3 out=runs/results/$1.$2.$3 pseudo=() written=runs/results/mini-lora.sapt.$3
  [[ -e docs/results/$name.json ]] && return
  mkdir -p runs/results/logs
  # The pseudo inputs of a seed are the same in every run, so they are generated once.
  [[ -e $written/scores.json ]] && pseudo=(--generator.folder "$written/pseudo_inputs")
  if ! "$PYTHON" -m sapt_jax.train --seed "$3" --output "$out" "${pseudo[@]}" "${@:4}" \
      > "runs/results/logs/$name.log" 2>&1; then
    echo "failed: $name, see runs/results/logs" >&2
    return 1
  fi
  "$PYTHON" benchmarks/results.py collect "$out"
  echo "$name $("$PYTHON" -c "import json, sys; print(json.load(open(sys.argv[1]))['metrics'])" "$out/scores.json")"
}
export -f run

# Lines "ROW SEED OPTIONS" from stdin, JOBS at a time.
all() { xargs -d '\n' -P "${JOBS:-1}" -I{} bash -c "run $table {}"; }

wanted() { [[ -z ${ONLY:-} || " $ONLY " == *" $1 "* ]]; }

# Rows "ROW OPTION RATES OPTIONS": the same stream for each rate of one option.
tune() {
  local common="--stream.tasks film_mood parcel_town headline_section chest_content queue_ends --evaluation.no-every-task"
  while read -r row option rates options; do
    wanted "$row" || continue
    for rate in ${rates//,/ }; do
      echo "$row@${option#--}=$rate 100 --pet.kind $kind $common $option $rate $options"
    done
  done | all
}

# Rows "ROW OPTIONS": each with three seeds, at the rates that tuning found for the row.
compare() {
  local rates
  while read -r row options; do
    wanted "$row" || continue
    rates=$("$PYTHON" benchmarks/results.py rates "$kind" "$row")
    for seed in 0 1 2; do
      echo "$row $seed --pet.kind $kind $rates $options"
    done
  done | all
}

case $table in
  tune-lora) tune <<'ROWS' ;;
sapt --fit.learning-rate 1e-3,3e-3,1e-2
sapt --method.attention-learning-rate 3e-5,3e-4
sapt_published --fit.learning-rate 1e-3,3e-3,1e-2 --method.attention published --method.attention-learning-rate 3e-3
sapt_published --method.attention-learning-rate 1e-3,1e-2 --method.attention published
per_task --fit.learning-rate 1e-3,3e-3,1e-2 --method.name per_task
epi --fit.learning-rate 1e-3,3e-3,1e-2 --method.name epi
mocl --fit.learning-rate 1e-3,3e-3,1e-2 --method.name mocl
mocl --method.key-learning-rate 1e-4,1e-1 --method.name mocl
sequential --fit.learning-rate 3e-4,1e-3,3e-3 --method.name sequential
replay --fit.learning-rate 3e-4,1e-3,3e-3 --method.name replay
multi_task --fit.learning-rate 3e-4,1e-3,3e-3 --method.name multi_task
tree_lora --fit.learning-rate 3e-4,1e-3,3e-3 --method.name tree_lora
lfpt5 --fit.learning-rate 3e-4,1e-3,3e-3 --method.name lfpt5
o_lora --fit.learning-rate 3e-4,1e-3,3e-3 --method.name o_lora
n_lora --fit.learning-rate 1e-3,3e-3,1e-2 --method.name n_lora
inflora --fit.learning-rate 1e-3,3e-3,1e-2 --method.name inflora
gainlora --fit.learning-rate 1e-3,3e-3,1e-2 --method.name gainlora
gainlora --method.gate-learning-rate 1e-4,1e-3 --method.name gainlora
ROWS
  tune-prompt) tune <<'ROWS' ;;
sapt --fit.learning-rate 0.1,0.3,1
sapt --method.attention-learning-rate 3e-5,3e-4 --fit.learning-rate 0.3
per_task --fit.learning-rate 0.1,0.3,1 --method.name per_task
epi --fit.learning-rate 0.1,0.3,1 --method.name epi
mocl --fit.learning-rate 0.1,0.3,1 --method.name mocl --method.key-learning-rate 1e-2
mocl --method.key-learning-rate 1e-3,1e-1 --method.name mocl --fit.learning-rate 0.1
sequential --fit.learning-rate 0.03,0.1,0.3 --method.name sequential
replay --fit.learning-rate 0.03,0.1,0.3 --method.name replay
multi_task --fit.learning-rate 0.03,0.1,0.3 --method.name multi_task
lfpt5 --fit.learning-rate 0.03,0.1,0.3 --method.name lfpt5
l2p --fit.learning-rate 0.03,0.1,0.3 --method.name l2p --method.key-learning-rate 3e-2
l2p --method.key-learning-rate 3e-3,3e-1 --method.name l2p --fit.learning-rate 0.1
prog_prompt --fit.learning-rate 0.1,0.3,1 --method.name prog_prompt
prog_prompt_known --fit.learning-rate 0.1,0.3,1 --method.name prog_prompt --method.task-known
ROWS
  mini-lora) compare <<'ROWS' ;;
sapt
per_task --method.name per_task
epi --method.name epi
sapt_published --method.attention published
mocl --method.name mocl
sequential --method.name sequential
replay --method.name replay
multi_task --method.name multi_task
tree_lora --method.name tree_lora
lfpt5 --method.name lfpt5
o_lora --method.name o_lora
n_lora --method.name n_lora
inflora --method.name inflora
gainlora --method.name gainlora
ROWS
  mini-fresh-lora) compare <<'ROWS' ;;
sapt --pet.new-block fresh
sapt_published --pet.new-block fresh --method.attention published
per_task --pet.new-block fresh --method.name per_task
epi --pet.new-block fresh --method.name epi
mocl --pet.new-block fresh --method.name mocl
o_lora --pet.new-block fresh --method.name o_lora
n_lora --pet.new-block fresh --method.name n_lora
ROWS
  mini-prompt) compare <<'ROWS' ;;
sapt
per_task --method.name per_task
epi --method.name epi
mocl --method.name mocl
sequential --method.name sequential
replay --method.name replay
multi_task --method.name multi_task
lfpt5 --method.name lfpt5
l2p --method.name l2p
prog_prompt --method.name prog_prompt
prog_prompt_known --method.name prog_prompt --method.task-known
ROWS
  *) echo "no table $table" >&2; exit 2 ;;
esac
