"""Real processes that share one run over loopback: the results of one process, a stop as asked, a
lost process, other meshes to go on.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from sapt_jax import config, continual, processes, sharding, train
from sapt_jax.config import Distributed
from sapt_jax.errors import InputError
from sapt_jax.methods.sequential import SequentialOptions
from sapt_jax.run_folder import RunFolder
from sapt_jax.training import checkpoint, fit
from tests.runs import rows_of, scores

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As short as a run can be in which everything is shared that processes share.
SHORT = "--fit.steps 6 --fit.checkpoint-every 5"

# A training run that sends itself a signal in its second task, after step 2. It then waits until
# the runtime has seen it, as it looks once a second.
SIGNALLED = """
import os, sys, time
from sapt_jax import cli, train
from sapt_jax.training import fit
number, original = int(sys.argv.pop(1)), fit.Meter.add
def add(meter, step, *rest):
  original(meter, step, *rest)
  if number and meter.plan.label.startswith("2/2") and step == 2:
    os.kill(os.getpid(), number)
    time.sleep(3)
fit.Meter.add = add
cli.run(train.main)
"""


def start(options, output, number=None):
  """A process that trains, on one simulated device; `number`: the signal it sends itself."""
  # All else, such as where compiled programs are kept, is inherited (conftest.py).
  flags = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
  own = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  program = ["-m", "sapt_jax.train"] if number is None else ["-c", SIGNALLED, str(number)]
  return subprocess.Popen(
    [sys.executable, *program, "--output", str(output), *options],
    env=os.environ | own,
    cwd=output.parent,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(started):
  """Exit code, stdout and stderr of each process."""
  outcomes = []
  try:
    for process in started:
      out, err = process.communicate(timeout=600)
      outcomes.append((process.returncode, out, err))
  finally:
    for process in started:
      process.kill()
  return outcomes


def free_address():
  """A port on loopback that nobody listens at."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def together(count, options, output, numbers=None):
  """Outcomes of so many processes that share a run and no disk: all but the first have a folder of
  their own, in which nothing must be done. Each has its own copy of the data.
  """
  # No heartbeat is missed on a machine that is busy or paused.
  shared = (
    f"--distributed.heartbeat 600 --distributed.address {free_address()} "
    f"--distributed.processes {count} --distributed.process-id"
  ).split()
  places = [output, *(output.parent / f"machine{i}" / output.name for i in range(1, count))]
  data, started = options[options.index("--data.root") + 1], []
  for i, place in enumerate(places):
    place.parent.mkdir(exist_ok=True)
    own = ["--data.root", str(shutil.copytree(data, output.parent / f"{output.name}.data{i}"))]
    started.append(start([*options, *own, *shared, str(i)], place, numbers and numbers[i]))
  outcomes = ended(started)
  assert not [path for place in places[1:] for path in place.parent.iterdir()]
  return outcomes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  model = tiny.model_folder(root / "llama", tiny.LLAMA)
  return [*tiny.world(root), *SHORT.split(), "--backbone.path", str(model)]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
  """A run of one process on one device."""
  folder = tmp_path_factory.mktemp("alone") / "run"
  train.main([*world, "--output", str(folder)])
  return folder


def logged(folder):
  rows = rows_of(folder / "metrics.jsonl")
  return [
    (row["index"], row["step"], row["loss"], row["gradient_norm"]) for row in rows if "loss" in row
  ]


def assert_nearly_same_run(folder, other):
  assert scores(folder)["scores"] == scores(other)["scores"]
  assert (folder / "predictions.jsonl").read_text() == (other / "predictions.jsonl").read_text()
  np.testing.assert_allclose(logged(folder), logged(other), rtol=1e-5)


@pytest.mark.slow
def test_processes_of_two_devices_give_what_one_device_gives_and_one_of_them_speaks(
  world, alone, tmp_path
):
  options = "--mesh.data 2 --mesh.fsdp 2 --distributed.local-devices 2".split()
  outcomes = together(2, [*world, *options], tmp_path / "run")
  assert [code for code, _, _ in outcomes] == [0, 0], outcomes
  assert_nearly_same_run(tmp_path / "run", alone)
  printed = ["scores.json" in out for _, out, _ in outcomes]
  assert printed == ["count: step 6 of 6" in err for _, _, err in outcomes] == [True, False]


@pytest.mark.slow
def test_two_processes_stop_as_one_is_asked_to_and_they_or_four_simulated_devices_go_on(
  world, alone, tmp_path, capsys, monkeypatch
):
  outcomes = together(2, [*world, "--mesh.fsdp", "2"], tmp_path / "run", numbers=(0, 15))
  assert [code for code, _, _ in outcomes] == [75, 75], outcomes
  record = json.loads((tmp_path / "run/progress/01/learn" / checkpoint.RECORD).read_text())
  where = f"2/2 task002_count, step {record['step']} of 6"
  stop = f"stopped: as asked; {where} is saved; the same command continues this run"
  assert all(stop in err for _, _, err in outcomes)
  assert 2 <= record["step"] < 6
  store = shutil.copytree(tmp_path / "run", tmp_path / "store")
  at_url = [*world, "--mesh.fsdp", "2", "--output", f"file://{store}"]
  outcomes = together(2, at_url, tmp_path / "again")
  assert [code for code, _, _ in outcomes] == [0, 0], outcomes
  assert_nearly_same_run(store, alone)
  options = ["--mesh.data", "2", "--mesh.fsdp", "2", "--output", str(tmp_path / "run")]
  monkeypatch.setattr(fit, "LINE_EVERY", 0.0)
  train.main([*world, *options])
  begun = capsys.readouterr().err.split("2/2 task002_count: step ")[1]
  assert begun.startswith(f"{record['step'] + 1} of 6,")
  assert_nearly_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_wrong_input_that_one_process_meets_ends_all_with_one_line_each(world, tmp_path):
  odd = [*world, "--data.root", str(tmp_path / "nowhere")]
  shared = (
    f"--mesh.data 2 --distributed.address {free_address()} --distributed.processes 2 "
    "--distributed.process-id"
  ).split()
  outcomes = ended(
    [start([*options, *shared, str(i)], tmp_path / "run") for i, options in enumerate((world, odd))]
  )
  assert [code for code, _, _ in outcomes] == [2, 2], outcomes
  assert "process 1 has found wrong input" in outcomes[0][2]
  assert "nowhere" in outcomes[1][2]


@pytest.mark.slow
def test_a_process_ends_soon_and_says_why_when_another_is_killed(world, tmp_path):
  options = [*world, "--mesh.data", "2", "--method.name", "sequential"]
  outcomes = together(2, options, tmp_path / "run", numbers=(0, 9))
  assert outcomes[1][0] == -9
  code, _, err = outcomes[0]
  # It meets the broken connection; heartbeats are not waited for.
  assert code == processes.LOST, err
  assert (
    "error: process 0 of 2 ends, another process is gone; started again, all of them continue"
    in err
  )
  assert checkpoint.is_finished(tmp_path / "run/snapshots/00_task001_colour")


def test_processes_that_do_not_ask_for_the_same_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "all_say", lambda here: [here, False])
  asked = config.Config(SequentialOptions())
  folder = RunFolder(tmp_path / "run", asked, {})
  with pytest.raises(InputError, match="process 1 has other data than process 0"), folder:
    folder.begin()
  assert not (tmp_path / "run/config.json").exists()
  with pytest.raises(InputError, match="process 1 has other options than process 0; give all of"):
    continual.run(asked, tmp_path / "other")
  assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_processes_that_are_asked_for_different_things_end_with_a_line(world, tmp_path):
  """One of them alone would go into exchanges that the other does not know of."""
  shared = (
    f"--mesh.data 2 --distributed.address {free_address()} --distributed.processes 2 "
    "--distributed.process-id"
  ).split()
  own = ([], ["--start-from", str(tmp_path / "source")])
  outcomes = ended([start([*world, *shared, str(i), *own[i]], tmp_path / "run") for i in range(2)])
  assert [code for code, _, _ in outcomes] == [2, 2], outcomes
  assert all("process 1 has other options than process 0" in err for _, _, err in outcomes)


@pytest.mark.parametrize("size", [0, 1, 4999, 5000, 5001, 10_000, 12_345])
def test_what_process_0_tells_comes_whole_in_parts_of_few_sizes(monkeypatch, size):
  exchanged = []

  def broadcast(array):
    exchanged.append(array.nbytes)
    return array

  monkeypatch.setattr(processes, "CHUNK", 5000)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
  found = np.random.default_rng(0).bytes(size)
  assert processes.first_tells(lambda: found) == found
  assert set(exchanged) <= {8, 4096, 5000, 8192}

  def complain():
    raise InputError("what is wrong " * 1000)

  with pytest.raises(InputError) as raised:
    processes.first_tells(complain)
  assert str(raised.value) == "what is wrong " * 1000


def test_what_four_devices_saved_is_restored_on_other_meshes_bit_for_bit(tmp_path):
  def spread(mesh):
    return jax.sharding.NamedSharding(mesh, sharding.spec("batch", "heads"))

  tree = {
    "a": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),
    "b": np.arange(16.0, dtype=np.float32).reshape(8, 2),
  }
  wide = sharding.make_mesh(fsdp=4)
  placed = {
    "a": sharding.to_devices(tree["a"], spread(wide)),
    "b": sharding.to_devices(tree["b"], sharding.replicated(wide)),
  }
  checkpoint.save(tmp_path / "saved", placed, {})
  for mesh in (
    sharding.make_mesh(),
    sharding.make_mesh(fsdp=2, tensor=2),
    sharding.make_mesh(data=2, tensor=2),
  ):
    abstract = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread(mesh))
      for name, x in tree.items()
    }
    restored, _ = checkpoint.load(tmp_path / "saved", abstract)
    for name, value in tree.items():
      assert restored[name].sharding == spread(mesh)
      assert np.array_equal(restored[name], value)


SRUN = {
  "SLURM_NTASKS": "16",
  "SLURM_PROCID": "13",
  "SLURM_LOCALID": "5",
  "SLURM_STEP_NODELIST": "node[1-2]",
}
MPIRUN = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1",
}


@pytest.mark.parametrize(
  ("environment", "devices", "tpu", "expected"),
  [
    ({}, 0, False, None),
    ({"SLURM_NTASKS": "16", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}, 0, False, None),
    (SRUN, 0, False, [5]),
    (SRUN, 2, False, [10, 11]),
    (SRUN | {"SLURM_NTASKS": "1"}, 0, False, None),
    (MPIRUN, 0, False, [1]),
    ({}, 0, True, "all"),
  ],
  ids=["nothing", "sbatch without srun", "srun", "srun, two each", "srun of one", "mpirun", "tpu"],
)
def test_processes_are_found_as_launchers_say(environment, devices, tpu, expected):
  found = processes.arguments_of(Distributed(local_devices=devices), environment, tpu)
  assert found == (expected and {"local_device_ids": None if expected == "all" else expected})


def test_what_is_said_outright_goes_before_a_launcher():
  found = processes.arguments_of(Distributed("host:1234", 4, 3), SRUN, on_tpu=True)
  assert (found["coordinator_address"], found["num_processes"], found["process_id"]) == (
    "host:1234",
    4,
    3,
  )


@pytest.mark.parametrize(
  ("values", "named"),
  [
    ({"address": "host:1234"}, "distributed.processes, distributed.process_id: not given"),
    ({"processes": 2, "process_id": 0}, "distributed.address: not given"),
    ({"address": "host", "processes": 2, "process_id": 0}, "'host': must be HOST:PORT"),
    (
      {"address": "host:1", "processes": 2, "process_id": 2},
      "process_id 2: must be at least 0 and less",
    ),
    ({"local_devices": -1}, "local_devices -1"),
    ({"heartbeat": 0}, "heartbeat 0"),
  ],
  ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_half_given_options_are_refused(values, named):
  with pytest.raises(InputError, match=named):
    config.Distributed(**values)


def test_an_mpi_that_does_not_say_where_process_0_is_is_refused():
  without = {name: value for name, value in MPIRUN.items() if "uri" not in name}
  with pytest.raises(InputError, match="give --distributed"):
    processes.arguments_of(Distributed(), without, on_tpu=False)


def test_who_waits_says_for_whom_and_the_way_out():
  said = processes.waited_for(Distributed("host:1234", 4, 3), SRUN)
  assert said.startswith("process 3 waits until all 4 processes have come to host:1234; ")
  said = processes.waited_for(Distributed(), SRUN)
  assert f"process {SRUN['SLURM_PROCID']} waits for the {SRUN['SLURM_NTASKS']} processes" in said
  assert "to run one alone, start a step of one (srun --ntasks 1)" in said
