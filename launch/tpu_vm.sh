#!/usr/bin/env bash
# Runs the same command on every worker of a Cloud TPU VM. The workers find each other
# (docs/cluster.md):
#   launch/tpu_vm.sh NAME ZONE [options of sapt_jax.train]
#   launch/tpu_vm.sh my-v5e-16 europe-west4-b --mesh.fsdp 16 --output gs://bucket/run
#   FOLDER=sapt_jax    the checkout on the workers, with pip install -e '.[tpu]' in its .venv
# The first worker alone writes and reads what --output names; the others need no disk.
set -euo pipefail
name=${1:?usage: launch/tpu_vm.sh NAME ZONE [options of sapt_jax.train]}
zone=${2:?usage: launch/tpu_vm.sh NAME ZONE [options of sapt_jax.train]}
shift 2
printf -v command '%q ' "${PYTHON:-.venv/bin/python}" -m sapt_jax.train "$@"
printf -v folder '%q' "${FOLDER:-sapt_jax}"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "cd $folder && exec $command"
