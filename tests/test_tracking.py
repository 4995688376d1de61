"""--track: a tool shows each figure of a run once, however often the run is stopped or killed."""

import importlib
import json
from collections import Counter
from typing import ClassVar

import pytest
import tiny

from sapt_jax import processes, tracking, train
from sapt_jax.errors import InputError, Stopped
from sapt_jax.run_folder import RunFolder
from tests.runs import Loop, rows_of, scores

# Times are those of the start that has sent them; what was computed is the same in every start.
TIMES = ("cost/", "learn/tokens_per_s", "inputs/tokens_per_s")


class Killed(BaseException):
  """Ends a run at once, as a signal would that cannot be caught."""


class Memory:
  """A tool that keeps all it is sent, by the run that it was sent for."""

  package = "json"
  shown: ClassVar[dict] = {}
  ended: ClassVar[list] = []
  kill_at: ClassVar[set] = set()  # numbers of points after which the process is killed

  def __init__(self, run):
    self.id = run.id or f"run {len(self.shown)}"
    self.points = self.shown.setdefault(self.id, [])

  def log(self, point):
    self.points += [(name, point.step, value) for name, value in point.named.items()]
    if point.number in self.kill_at:
      raise Killed

  def close(self, done):
    self.ended.append(done)


@pytest.fixture
def memory(monkeypatch):
  kind = type("Memory", (Memory,), {"shown": {}, "ended": [], "kill_at": set()})
  monkeypatch.setitem(tracking.TRACKERS, "trackio", kind)
  return kind


@pytest.fixture(scope="module")
def tracked(world):
  return Loop([*world, "--track", "trackio", "--fit.validate-every", "3"])


def go_through(loop, folder):
  """Starts the run again until it is done; returns how often it was started."""
  for start in range(1, 100):
    try:
      loop.run(folder)
    except (Stopped, Killed):
      continue
    return start
  raise AssertionError


def expected(folder):
  """(name, step) -> value, for all that metrics.jsonl and scores.json of a run of two tasks hold.
  Reckoned anew, by the number of steps that each phase takes.
  """
  steps, found = {"learn": 6, "inputs": 2}, {}
  for row in rows_of(folder / "metrics.jsonl"):
    index, phase = row["index"], row.get("phase", "learn")
    at = row["step"] + index * steps[phase] if "step" in row else index + 1
    if "dev" in row:
      figures = {"dev/score": row["dev"], "dev/task": index + 1}
    elif "step" in row:
      left_out = ("index", "task", "phase", "step")
      figures = {f"{phase}/{key}": row[key] for key in row if key not in left_out}
      figures[f"{phase}/task"] = index + 1
    elif "pseudo_inputs" in row:
      figures = {f"pseudo_inputs/{key}": value for key, value in row["pseudo_inputs"].items()}
    else:
      figures = {f"cost/{key}": row[key] for key in row if key not in ("index", "task")}
    found |= {(name, at): value for name, value in figures.items()}
  result = scores(folder)
  for index, row in enumerate(result["scores"]):
    for task, score in zip(result["tasks"], row, strict=True):
      if score is not None:
        found[f"score/{task}", index + 1] = score
  return found


def assert_shows(points, folder, all_times=False):
  assert max(Counter((name, step) for name, step, _ in points).values()) == 1
  shown = {(name, step): value for name, step, value in points}
  wanted = expected(folder)
  assert shown.keys() == wanted.keys()
  assert not {
    key: (value, wanted[key])
    for key, value in shown.items()
    if value != wanted[key] and (all_times or not key[0].startswith(TIMES))
  }


def test_a_run_that_goes_through_is_shown_as_it_is_logged(tracked, memory, tmp_path):
  tracked.run(tmp_path / "run")
  [points] = memory.shown.values()
  assert_shows(points, tmp_path / "run", all_times=True)
  names = {name.split("/")[0] for name, *_ in points}
  assert names == {"learn", "inputs", "dev", "cost", "score", "pseudo_inputs"}
  assert memory.ended == [True]
  tracked.run(tmp_path / "run")  # nothing is left to send
  assert_shows(points, tmp_path / "run", all_times=True)


def test_a_run_that_is_stopped_all_the_time_is_one_run_with_each_step_once(
  tracked, memory, tmp_path, monkeypatch
):
  looks = iter(range(1, 10**6))
  monkeypatch.setattr(processes, "stop_asked", lambda: next(looks) % 7 == 0)
  assert go_through(tracked, tmp_path / "run") > 3
  [points] = memory.shown.values()
  assert_shows(points, tmp_path / "run")
  assert set(memory.ended[:-1]) == {False}
  assert memory.ended[-1]


def test_steps_that_a_killed_run_has_sent_and_makes_again_are_not_sent_again(
  tracked, memory, tmp_path
):
  """It is killed after a step that no checkpoint holds, in each task, and after a task's scores."""
  memory.kill_at |= {7, 11, 22}
  assert go_through(tracked, tmp_path / "run") == 4
  [points] = memory.shown.values()
  assert_shows(points, tmp_path / "run")


def test_a_tool_named_later_gets_what_was_logged_and_a_run_learned_anew_is_a_new_one(
  tracked, world, memory, tmp_path
):
  run = tmp_path / "run"
  options = [*world, "--fit.validate-every", "3", "--output", str(run)]
  train.main(options)
  assert not memory.shown
  tracked.run(run)  # how it is watched changes no result
  assert_shows(memory.shown["run 0"], run, all_times=True)
  train.main([*options, "--track", "trackio", "--from-task", "2"])
  assert_shows(memory.shown["run 1"], run, all_times=True)
  assert len(memory.shown) == 2


@pytest.mark.parametrize("where", ["__init__", "log", "close"])
def test_a_tool_that_fails_is_one_warning_and_the_run_goes_on(
  tracked, memory, tmp_path, monkeypatch, capsys, where
):
  def fail(*_):
    raise OSError("nobody\nanswers")

  with monkeypatch.context() as patch:
    patch.setattr(memory, where, fail)
    tracked.run(tmp_path / "run")
  assert scores(tmp_path / "run")["scores"]
  said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
  assert said == [
    "warning: --track trackio: nobody answers; the run goes on without it, and started again it "
    "sends what is missing"
  ]
  tracked.run(tmp_path / "run")
  [points] = memory.shown.values()
  missing = expected(tmp_path / "run").keys() - {(name, step) for name, step, _ in points}
  assert len({(name.split("/")[0], step) for name, step in missing}) <= (where == "log")


def test_a_tool_that_is_not_installed_is_refused_with_the_way_to_get_it(
  world, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(tracking.Wandb, "package", "no_such_package")
  options = [*world, "--track", "wandb", "--output", tmp_path / "run"]
  code, complaint = tiny.run_program(train, options, monkeypatch, capsys)
  assert code == 2
  assert "--track wandb: no_such_package is not installed; pip install 'sapt-jax[wandb]'" in (
    complaint
  )
  assert not (tmp_path / "run").exists()
  with pytest.raises(InputError, match="track 'tesnorboard': must be one of tensorboard, wandb"):
    tracking.check("tesnorboard")


# What the tools themselves say that they were sent: (name, step, value), each in its own way.


def of_tensorboard(folder):
  accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  events = accumulator.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
  return [
    (name, event.step, event.value)
    for name in events.Tags()["scalars"]
    for event in events.Scalars(name)
  ]


def records_of(file):
  """The records of a file of W&B: of LevelDB's log format, behind a header of seven bytes."""
  content, at, parts = file.read_bytes(), 7, []
  while at + 7 <= len(content):
    left = 2**15 - at % 2**15
    if left < 7:  # the end of a block is filled up
      at += left
      continue
    length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    parts.append(content[at + 7 : at + 7 + length])
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield b"".join(parts)
      parts = []


def of_wandb(folder):
  proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
  found, ids, order = [], set(), []
  for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    for content in records_of(file):
      record = proto.Record.FromString(content)
      ids |= {record.run.run_id} - {""}
      items = record.history.item
      row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
      order += [record.history.step.num] if row else []
      found += [
        (name, row[f"step/{name.split('/')[0]}"], value)
        for name, value in row.items()
        if not name.startswith(("_", "step/"))
      ]
  assert len(ids) == 1
  assert order == list(range(len(order)))
  return found


def of_mlflow(folder):
  client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
  experiment = client.get_experiment_by_name(tracking.PROJECT)
  [run] = client.search_runs([experiment.experiment_id])
  assert run.data.params["method.name"] == "sapt"
  assert run.info.status == "FINISHED"
  return [
    (name, metric.step, metric.value)
    for name in run.data.metrics
    for metric in client.get_metric_history(run.info.run_id, name)
  ]


def of_trackio(folder):
  storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
  [name] = storage.get_runs(tracking.PROJECT)
  return [
    (name, row["step"], value)
    for row in storage.get_logs(tracking.PROJECT, name)
    for name, value in row.items()
    if "/" in name
  ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("tool", "read"),
  [
    ("tensorboard", of_tensorboard),
    ("wandb", of_wandb),
    ("mlflow", of_mlflow),
    ("trackio", of_trackio),
  ],
)
def test_the_tool_itself_has_each_figure_of_a_run_once(world, tmp_path, monkeypatch, tool, read):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # looked at when it is imported
  package = tracking.TRACKERS[tool].package
  pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sapt-jax[{tool}]'")
  loop, run, rows = Loop([*world, "--track", tool]), tmp_path / "run", [0]

  def log(folder, row, original=RunFolder.log):
    original(folder, row)
    rows[0] += 1
    if rows[0] in (3, 16):  # a step behind the checkpoint, in each task
      raise Killed

  monkeypatch.setattr(RunFolder, "log", log)
  assert go_through(loop, run) == 3
  found, wanted = read(run), expected(run)
  assert max(Counter((name, step) for name, step, _ in found).values()) == 1
  assert {(name, step) for name, step, _ in found} == wanted.keys()
  for name, step, value in found:
    if not name.startswith(TIMES):
      assert value == pytest.approx(wanted[name, step], rel=1e-6), (name, step)
