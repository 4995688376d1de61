"""Whole runs on tiny models: what they leave, and what is measured."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import tiny

from sapt_jax import continual, export, predict, train
from sapt_jax.text_files import json_lines, write_lines
from tests.runs import record_of, rows_of, scores, snapshots


def test_a_run_leaves_scores_predictions_pseudo_inputs_pictures_and_snapshots(finished):
  result = scores(finished)
  assert result["tasks"] == list(tiny.TASKS)
  assert result["scores"][0][1] is None
  assert all(0 <= value <= 100 for value in result["scores"][1])
  assert result["metrics"]["AP"] == pytest.approx(np.mean(result["scores"][1]))
  assert result["metrics"]["FWT"] is result["single"] is None
  assert (result["steps"], result["protocol"], result["seed"]) == ([6, 6], "published", 0)
  assert result["attention"] == "xla"  # auto, on a CPU
  predictions = rows_of(finished / "predictions.jsonl")
  assert len(predictions) == 5 + 10
  assert {"after", "task", "input", "prediction", "references"} <= predictions[0].keys()
  for name in ("mixture_training.png", "mixture_testing.png"):
    assert (finished / name).read_bytes().startswith(b"\x89PNG")
  assert len(list((finished / "pseudo_inputs").iterdir())) == 2
  log = rows_of(finished / "metrics.jsonl")
  own_steps = [(row["index"], row["step"]) for row in log if "reflection" in row]
  assert own_steps == [(task, step) for task in range(2) for step in range(1, 7)]
  phases = {key for row in log if "compilations" in row for key in row if key.endswith("_s")}
  names = ("start", "begin", "learn", "remember", "evaluate", "save")
  assert phases == {"compile_s", *(f"{name}_s" for name in names)}


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
  """A run that is held against blocks learned alone, and what it printed."""
  folder, said = tmp_path_factory.mktemp("compared") / "run", io.StringIO()
  options = ["--method.name", "sequential", "--fit.steps", "2", "--single", "train"]
  with contextlib.redirect_stdout(said):
    train.main([*world, *options, "--output", str(folder)])
  return folder, said.getvalue()


def test_forward_transfer_is_measured_against_blocks_learned_alone(compared):
  folder, said = compared
  result, alone = scores(folder), scores(folder / "single")
  assert (result["method"], alone["method"]) == ("sequential", "per_task")
  assert result["single"] == [alone["scores"][j][j] for j in range(2)]
  assert result["metrics"]["FWT"] == pytest.approx(
    np.mean([result["scores"][j][j] - result["single"][j] for j in range(2)])
  )
  assert "FWT" in said
  assert "attention: xla\n" in said


def test_a_block_of_a_method_that_knows_the_task_is_exported_but_does_not_answer(
  compared, tmp_path, monkeypatch, capsys
):
  folder = compared[0] / "single"
  export.main(["--run", str(folder), "--task", "task002", "--output", str(tmp_path / "block")])
  assert (tmp_path / "block/adapter_model.safetensors").is_file()
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n')
  arguments = [
    "--run",
    folder,
    "--input",
    tmp_path / "q.jsonl",
    "--output",
    tmp_path / "o",
  ]
  code, complaint = tiny.run_program(predict, arguments, monkeypatch, capsys)
  assert (code, "per_task needs to know the task" in complaint) == (2, True)
  code, complaint = tiny.run_program(
    export, ["--run", folder, "--output", tmp_path / "q.jsonl"], monkeypatch, capsys
  )
  assert (code, "is a file" in complaint) == (2, True)


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
  read = [row for _, row in json_lines(tmp_path / "rows.jsonl")]
  assert read == predict.read_questions(tmp_path / "rows.jsonl") == rows


def test_the_time_left_is_that_of_a_usual_task_for_each_that_is_left():
  assert continual.time_left([60, 600, 60], 8) == "3 of 8 tasks learned, about 5 min left"
  assert continual.time_left([3600], 4) == "1 of 4 tasks learned, about 3.0 hours left"
  assert continual.time_left([2], 3) == "1 of 3 tasks learned, about 4 s left"
  assert continual.time_left([2, 3], 2) == ""


def test_the_mixture_in_training_is_that_of_training(world, tmp_path):
  for number, name in enumerate(tiny.TASKS):
    row = {"definition": "Say it.", "input": "one"}
    (tmp_path / f"{number:02d}_{name}.jsonl").write_text(json.dumps(row) + "\n")
  options = [
    "--fit.steps",
    "1",
    "--method.uniform",
    "answering",
    "--generator.folder",
    str(tmp_path),
  ]
  train.main([*world, *options, "--output", str(tmp_path / "run")])
  record = record_of(snapshots(tmp_path / "run")[-1])
  assert record["testing_mixture"][0] == pytest.approx([0.5, 0.5])
  assert record["training_mixture"][1] > 0.6


@pytest.mark.slow
def test_a_decoder_only_backbone_runs_with_soft_prompts(world, tmp_path):
  model = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  options = ["--backbone.path", str(model), "--pet.kind", "prompt", "--fit.steps", "2"]
  train.main([*world, *options, "--output", str(tmp_path / "run")])
  assert scores(tmp_path / "run")["metrics"]["AP"] is not None
