"""Whole runs on tiny models: what they leave, how they go on after being stopped, what they refuse."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from sapt_jax import config, export, predict, report, train
from sapt_jax.answering import Answering
from sapt_jax.errors import InputError
from sapt_jax.run_folder import RunFolder, read_lines, sound_snapshots, write_lines
from sapt_jax.training import checkpoint, fit


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The options that every run here shares, with a model and data to run on."""
  return tiny.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
  """A run that went through without a stop."""
  folder = tmp_path_factory.mktemp("finished") / "run"
  train.main([*world, "--output", str(folder)])
  return folder


def scores(folder):
  return json.loads((folder / "scores.json").read_text())


def saved_arrays(folder):
  """Every array of the last snapshot, by name."""
  return ocp.load(str(max((folder / "snapshots").iterdir()) / checkpoint.TREE))


def log_steps(folder):
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [
    (row["index"], row["step"]) for row in rows if "own_weight" in row and "reflection" in row
  ]


def test_a_run_leaves_scores_predictions_pseudo_inputs_pictures_and_snapshots(finished):
  result = scores(finished)
  assert result["tasks"] == list(tiny.TASKS)
  assert result["scores"][0][1] is None
  assert all(0 <= value <= 100 for value in result["scores"][1])
  assert result["metrics"]["AP"] == pytest.approx(np.mean(result["scores"][1]))
  assert result["metrics"]["FWT"] is result["single"] is None
  assert (result["steps"], result["protocol"], result["seed"]) == ([6, 6], "published", 0)
  predictions = [
    json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()
  ]
  assert len(predictions) == 5 + 10
  assert {"after", "task", "input", "prediction", "references"} <= predictions[0].keys()
  for name in ("mixture_training.png", "mixture_testing.png"):
    assert (finished / name).read_bytes().startswith(b"\x89PNG")
  assert len(list((finished / "pseudo_inputs").iterdir())) == 2
  assert log_steps(finished) == [(task, step) for task in range(2) for step in range(1, 7)]


def stop_at_save(monkeypatch, number):
  """Has the process die (as by ctrl-C) right after its number-th save of anything."""
  saves = []

  def save(folder, tree, record, original=checkpoint.save):
    original(folder, tree, record)
    saves.append(folder)
    if len(saves) == number:
      raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint, "save", save)


@pytest.mark.parametrize(
  "stops", [(1,), (2, 4), (3, 1, 1)], ids=["in task 1", "in both tasks", "between phases"]
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_stopped_run_ends_where_an_unstopped_one_does_bit_for_bit(
  world, finished, tmp_path, monkeypatch, stops
):
  for number in stops:
    with monkeypatch.context() as patch:
      stop_at_save(patch, number)
      with pytest.raises(KeyboardInterrupt):
        train.main([*world, "--output", str(tmp_path / "run")])
  train.main([*world, "--output", str(tmp_path / "run")])
  assert scores(tmp_path / "run")["scores"] == scores(finished)["scores"]
  assert (tmp_path / "run" / "predictions.jsonl").read_text() == (
    finished / "predictions.jsonl"
  ).read_text()
  assert log_steps(tmp_path / "run") == log_steps(finished)
  one, other = saved_arrays(finished), saved_arrays(tmp_path / "run")
  assert one.keys() == other.keys()
  for name, value in one.items():
    assert np.array_equal(value, other[name]), name


def test_no_step_stands_in_the_log_twice_and_half_a_line_is_dropped(tmp_path):
  folder = RunFolder(tmp_path, config.Config(), "weights")
  checkpoint.save(folder.progress(1), {"x": np.zeros(1)}, {"step": 4})

  def step(index, number, **more):
    return json.dumps({"index": index, "step": number, **more})

  kept = [
    step(0, 6, loss=1.0),
    step(0, 3, loss=1.0),
    '{"index": 0, "compile_s": 1}',
    step(1, 2, loss=1.0),
    step(1, 4, dev=50.0),
    step(1, 4, loss=1.0),
  ]
  later = [
    step(1, 6, loss=1.0),
    step(1, 3, loss=1.0),
    '{"index": 1, "pseudo_inputs": {}}',
    '{"index": 1, "st',
  ]
  (tmp_path / "metrics.jsonl").write_text("\n".join([*kept, *later]))
  folder.trim_log(1)
  assert (tmp_path / "metrics.jsonl").read_text().splitlines() == kept
  shutil.rmtree(folder.progress(1))
  folder.trim_log(1)
  assert (tmp_path / "metrics.jsonl").read_text().splitlines() == kept[:3]


def test_the_hundredth_snapshot_comes_after_the_ninety_ninth(tmp_path):
  for index in (11, 99, 100, 2):
    checkpoint.save(tmp_path / f"snapshots/{index:02d}_task", {"x": np.zeros(1)}, {})
  assert [int(folder.name.split("_")[0]) for folder in sound_snapshots(tmp_path)] == [
    2,
    11,
    99,
    100,
  ]


def test_a_finished_run_is_not_learned_again(world, finished, monkeypatch):
  def learned_again(*_):
    raise AssertionError

  monkeypatch.setattr(fit.Trainer, "fit", learned_again)
  before = scores(finished)
  train.main([*world, "--output", str(finished)])
  assert scores(finished) == before


def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(
  world, finished, tmp_path, monkeypatch, capsys
):
  shutil.copytree(finished, tmp_path / "run")
  last = max((tmp_path / "run" / "snapshots").iterdir())
  harmed = next(path for path in (last / "tree").rglob("d/*") if path.is_file())
  harmed.write_bytes(harmed.read_bytes()[:-1])
  learned = []
  original = fit.Trainer.fit
  monkeypatch.setattr(
    fit.Trainer,
    "fit",
    lambda self, start, rows, plan: learned.append(plan.label) or original(self, start, rows, plan),
  )
  train.main([*world, "--output", str(tmp_path / "run")])
  assert str(harmed) in capsys.readouterr().err
  assert [label for label in learned if "inputs" not in label] == ["2/2 task002_count"]
  assert scores(tmp_path / "run")["scores"] == scores(finished)["scores"]


def ask(folder, tmp_path, questions):
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
  predict.main(
    [
      "--run",
      str(folder),
      "--input",
      str(tmp_path / "in.jsonl"),
      "--output",
      str(tmp_path / "out.jsonl"),
    ]
  )
  return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_predict_answers_as_the_run_did_and_says_its_mixture(finished, tmp_path):
  asked = [
    {"definition": definition, "input": text, "id": i}
    for i, (definition, rows) in enumerate(tiny.TASKS.values())
    for text, _ in rows[:5]
  ]
  answers = ask(finished, tmp_path, [*asked, {"input": "free text " * 40}])
  predictions = [
    json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()
  ]
  assert [answer["output"] for answer in answers[:-1]] == [
    row["prediction"] for row in predictions[5:]
  ]
  for answer in answers:
    assert list(answer["mixture"]) == list(tiny.TASKS)
    assert sum(answer["mixture"].values()) == pytest.approx(1, abs=1e-5)
  assert answers[3]["id"] == 0


@pytest.mark.parametrize("method", ["sequential", "per_task"])
def test_the_methods_to_compare_with_run_from_the_same_options(world, tmp_path, method):
  train.main(
    [*world, "--output", str(tmp_path / "run"), "--method.name", method, "--fit.steps", "2"]
  )
  result = scores(tmp_path / "run")
  assert result["method"] == method
  if method == "per_task":
    assert result["metrics"]["F.Ra"] == 0


def test_forward_transfer_is_measured_against_blocks_learned_alone(world, tmp_path, capsys):
  train.main([*world, "--output", str(tmp_path / "run"), "--fit.steps", "2", "--single", "train"])
  result, alone = scores(tmp_path / "run"), scores(tmp_path / "run" / "single")
  assert alone["method"] == "per_task"
  assert result["single"] == [alone["scores"][j][j] for j in range(2)]
  assert result["metrics"]["FWT"] == pytest.approx(
    np.mean([result["scores"][j][j] - result["single"][j] for j in range(2)])
  )
  assert "FWT" in capsys.readouterr().out


def test_transfer_is_not_measured_against_unlike_runs(
  world, finished, tmp_path, monkeypatch, capsys
):
  shutil.copytree(finished, tmp_path / "alone")
  file = tmp_path / "alone/scores.json"
  file.write_text(json.dumps(scores(finished) | {"method": "per_task", "metric": "exact_match"}))
  arguments = [*world, "--output", tmp_path / "run", "--seed", "1", "--single", tmp_path / "alone"]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  assert code == 2
  assert "seed 0 (here 1), evaluation.metric exact_match (here rouge_l)" in complaint


def test_rows_are_read_as_they_were_written_whatever_is_in_them(tmp_path):
  rows = [{"input": "a\u0085b\u2028c\u2029d\re\nf\x0bg"}, {"input": ""}]
  write_lines(tmp_path / "rows.jsonl", rows)
  assert (
    read_lines(tmp_path / "rows.jsonl") == predict.read_questions(tmp_path / "rows.jsonl") == rows
  )


def test_the_mixture_in_training_is_that_of_training(world, finished, tmp_path):
  train.main(
    [
      *world,
      "--output",
      str(tmp_path / "run"),
      "--fit.steps",
      "1",
      "--method.uniform",
      "answering",
      "--generator.folder",
      str(finished / "pseudo_inputs"),
    ]
  )
  record = json.loads((max((tmp_path / "run/snapshots").iterdir()) / checkpoint.RECORD).read_text())
  assert record["testing_mixture"][0] == pytest.approx([0.5, 0.5])
  assert record["training_mixture"][1] > 0.6


@pytest.mark.slow
def test_a_decoder_only_backbone_runs_with_soft_prompts(world, tmp_path):
  model = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  train.main(
    [
      *world,
      "--output",
      str(tmp_path / "run"),
      "--backbone.path",
      str(model),
      "--pet.kind",
      "prompt",
      "--fit.steps",
      "2",
    ]
  )
  assert scores(tmp_path / "run")["metrics"]["AP"] is not None


def test_sigterm_saves_a_checkpoint_and_ends_with_code_75(world, tmp_path, monkeypatch, capsys):
  def add(meter, step, *rest, original=fit.Meter.add):
    original(meter, step, *rest)
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(fit.Meter, "add", add)
  before = signal.getsignal(signal.SIGTERM)
  code, complaint = tiny.run_program(
    train, [*world, "--output", tmp_path / "run"], monkeypatch, capsys
  )
  stop = "stopped: SIGTERM came; 1/2 task001_colour, step 3 of 6 is saved; the same command continues this run"
  assert (code, stop in complaint) == (75, True)
  assert json.loads((tmp_path / "run/progress/00" / checkpoint.RECORD).read_text())["step"] == 3
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_damaged_checkpoint_is_named_and_its_task_is_learned_from_the_beginning(
  world, finished, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    stop_at_save(patch, 2)
    with pytest.raises(KeyboardInterrupt):
      train.main([*world, "--output", str(tmp_path / "run")])
  harmed = tmp_path / "run/progress/00" / checkpoint.RECORD
  harmed.write_text("{}")
  train.main([*world, "--output", str(tmp_path / "run")])
  assert str(harmed) in capsys.readouterr().err
  assert log_steps(tmp_path / "run") == log_steps(finished)
  assert scores(tmp_path / "run")["scores"] == scores(finished)["scores"]


def test_other_options_in_the_same_folder_are_refused_and_listed(
  world, finished, monkeypatch, capsys
):
  code, complaint = tiny.run_program(
    train, [*world, "--output", finished, "--fit.steps", "7"], monkeypatch, capsys
  )
  assert (code, "fit.steps: 6 -> 7" in complaint) == (2, True)


def test_a_run_from_before_an_option_was_there_goes_on_with_its_default(
  world, finished, tmp_path, monkeypatch, capsys
):
  shutil.copytree(finished, tmp_path / "run")
  file = tmp_path / "run/config.json"
  begun = json.loads(file.read_text())
  del begun["method"]["uniform"]
  file.write_text(json.dumps(begun))
  code, complaint = tiny.run_program(
    train, [*world, "--output", tmp_path / "run", "--method.uniform", "always"], monkeypatch, capsys
  )
  assert (code, "method.uniform: never -> always" in complaint) == (2, True)
  train.main([*world, "--output", str(tmp_path / "run")])


def test_other_weights_of_the_same_shape_are_refused(
  world, finished, tmp_path, monkeypatch, capsys
):
  model = tiny.model_folder(tmp_path / "t5", tiny.T5, seed=1)
  monkeypatch.setattr("sapt_jax.learner.backbone_folder", lambda _: model)
  code, complaint = tiny.run_program(train, [*world, "--output", finished], monkeypatch, capsys)
  assert (code, "backbone.weights" in complaint) == (2, True)


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(world, tmp_path):
  model = tiny.model_folder(tmp_path / "broken", tiny.T5, scale=float("nan"))
  with pytest.raises(fit.DivergedError, match="step 1: loss nan"):
    train.main([*world, "--output", str(tmp_path / "run"), "--backbone.path", str(model)])
  assert not list((tmp_path / "run" / "snapshots").iterdir())


def test_predict_goes_back_to_the_snapshot_before_a_damaged_one(finished, tmp_path, capsys):
  shutil.copytree(finished, tmp_path / "run")
  harmed = max((tmp_path / "run" / "snapshots").iterdir()) / checkpoint.RECORD
  harmed.write_text("{}")
  [answer] = ask(tmp_path / "run", tmp_path, [{"input": "red"}])
  assert list(answer["mixture"]) == ["task001_colour"]
  assert str(harmed) in capsys.readouterr().err


def test_what_is_not_to_be_logged_is_looked_at_before_it_is_saved():
  meter = fit.Meter(fit.Plan("task", 100, None, print), 0, 10)
  metrics = {"loss": np.float32("nan"), "gradient_norm": np.float32(1)}
  meter.pending = (3, metrics)
  meter.flush()  # not read, so not waited for
  meter.pending = (3, metrics)
  with pytest.raises(fit.DivergedError, match="step 3: loss nan"):
    meter.flush(look=True)


def test_predict_refuses_what_is_no_run_or_no_question(finished, tmp_path, monkeypatch, capsys):
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n{"inptu": "b"}\n')

  def run(*extra):
    return tiny.run_program(
      predict,
      ["--output", tmp_path / "o", "--input", tmp_path / "q.jsonl", *extra],
      monkeypatch,
      capsys,
    )

  assert "q.jsonl:2: field 'input'" in run("--run", finished)[1]
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n')
  assert run("--run", tmp_path)[0] == 2
  (tmp_path / "q.jsonl").write_text(
    '{"input": "a"}\n' + json.dumps({"input": "b", "definition": "long " * 200}) + "\n"
  )
  assert "input 2: its definition leaves no room" in run("--run", finished)[1]
  assert not (tmp_path / "o").exists()


def test_answers_do_not_depend_on_how_many_are_asked_at_once(finished, tmp_path):
  rows = [{"input": f"question number {i}"} for i in range(5)]
  together = ask(finished, tmp_path, rows)
  assert ask(finished, tmp_path, rows[3:4])[0]["output"] == together[3]["output"]


def test_a_report_compares_finished_runs(finished, tmp_path, monkeypatch, capsys):
  other = tmp_path / "other"
  other.mkdir()
  changed = scores(finished) | {"label": "better"}
  changed["metrics"] = changed["metrics"] | {"AP": 99.0}
  (other / "scores.json").write_text(json.dumps(changed))
  report.main([str(finished), str(other), "--output", str(tmp_path / "report")])
  table = capsys.readouterr().out.splitlines()
  assert [line.split(" | ")[0] for line in table[2:]] == [
    "| better",
    "| sapt, routed, directions start",
  ]
  assert "99.0" in (tmp_path / "report" / "index.html").read_text()
  assert len((tmp_path / "report" / "comparison.csv").read_text().splitlines()) == 3
  (other / "scores.json").write_text(json.dumps(changed | {"tasks": ["another"]}))
  code, complaint = tiny.run_program(
    report, [finished, other, "--output", tmp_path / "report"], monkeypatch, capsys
  )
  assert (code, "different streams" in complaint) == (2, True)


def test_a_report_averages_seeds_of_one_experiment_alone():
  run = {
    "label": "sapt",
    "backbone": "t5",
    "protocol": "clean",
    "metric": "rouge_l",
    "pet": "lora of rank 4",
    "steps": [5, 5],
  }
  others = [
    {"seed": 1},
    {"pet": "prompt of 10"},
    {"label": "replay", "steps": [5, 9]},
    {"label": "replay", "steps": [5, 10]},
  ]
  runs = [
    run | other | {"metrics": {"AP": 50.0 - number}} for number, other in enumerate([{}, *others])
  ]
  groups = {label: len(members) for label, members in report.grouped(runs).items()}
  assert groups == {
    "sapt, lora of rank 4": 2,
    "sapt, prompt of 10": 1,
    "replay, lora of rank 4, 14 steps": 1,
    "replay, lora of rank 4, 15 steps": 1,
  }


def test_a_block_of_a_method_that_knows_the_task_is_exported_but_does_not_answer(
  world, tmp_path, monkeypatch, capsys
):
  train.main(
    [*world, "--output", str(tmp_path / "run"), "--method.name", "per_task", "--fit.steps", "1"]
  )
  export.main(
    ["--run", str(tmp_path / "run"), "--task", "task002", "--output", str(tmp_path / "block")]
  )
  assert (tmp_path / "block/adapter_model.safetensors").is_file()
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n')
  arguments = [
    "--run",
    tmp_path / "run",
    "--input",
    tmp_path / "q.jsonl",
    "--output",
    tmp_path / "o",
  ]
  code, complaint = tiny.run_program(predict, arguments, monkeypatch, capsys)
  assert (code, "per_task needs to know the task" in complaint) == (2, True)
  code, complaint = tiny.run_program(
    export, ["--run", tmp_path / "run", "--output", tmp_path / "q.jsonl"], monkeypatch, capsys
  )
  assert (code, "is a file" in complaint) == (2, True)


def test_a_block_and_a_mean_mixture_are_exported_for_peft(finished, tmp_path, capsys):
  for what in ("block", "mixture"):
    export.main(
      [
        "--run",
        str(finished),
        "--what",
        what,
        "--task",
        "task002",
        "--output",
        str(tmp_path / what),
      ]
    )
    assert "task002_count" in capsys.readouterr().out
  learned = Answering(finished).learned
  name = "decoder.block.1.layer.1.EncDecAttention.v.lora"
  block, mixture = (
    load_file(tmp_path / what / "adapter_model.safetensors") for what in ("block", "mixture")
  )
  pool = learned.blocks["lora"]["decoder"]["cross"]["v"]["b"][
    1
  ]  # (T, R, D_out) of the second layer
  np.testing.assert_array_equal(block[f"base_model.model.{name}_B.weight"], np.asarray(pool[1]).T)
  weights = np.asarray(learned.memory.target)[1]
  expected = np.concatenate([weights[task] * np.asarray(pool[task]) for task in range(2)]).T
  np.testing.assert_allclose(mixture[f"base_model.model.{name}_B.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--task", "task0"], "fits several of the run: task001_colour, task002_count"),
    (["--task", "task9"], "not a task"),
    (["--what", "pool"], "no centre"),
  ],
)
def test_what_cannot_be_exported_is_said(finished, tmp_path, arguments, named):
  with pytest.raises(InputError, match=named):
    export.main(["--run", str(finished), "--output", str(tmp_path / "out"), *arguments])
