"""What is done with finished runs: answering, exporting, reporting."""

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tokenizers
from safetensors.numpy import load_file

from sapt_jax import export, predict, report, train
from sapt_jax.answering import Answering
from sapt_jax.config import Mesh
from sapt_jax.errors import InputError
from sapt_jax.learner import put_together
from sapt_jax.run_identity import learned_anew
from sapt_jax.serve.ready import Ready
from sapt_jax.training import checkpoint
from tests.classroom import same
from tests.runs import rows_of, scores, snapshots


def ask(folder, tmp_path, questions):
  given, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  given.write_text("".join(json.dumps(question) + "\n" for question in questions))
  predict.main(["--run", str(folder), "--input", str(given), "--output", str(answers)])
  return rows_of(answers)


def test_predict_answers_as_the_run_did_and_says_its_mixture(finished, tmp_path):
  asked = [
    {"definition": definition, "input": text, "id": i}
    for i, (definition, rows) in enumerate(tiny.TASKS.values())
    for text, _ in rows[:5]
  ]
  answers = ask(finished, tmp_path, [*asked, {"input": "free text " * 40}])
  predictions = rows_of(finished / "predictions.jsonl")
  assert [answer["output"] for answer in answers[:-1]] == [
    row["prediction"] for row in predictions[5:]
  ]
  for answer in answers:
    assert list(answer["mixture"]) == list(tiny.TASKS)
    assert sum(answer["mixture"].values()) == pytest.approx(1, abs=1e-5)
  assert answers[3]["id"] == 0


def test_answers_go_into_links_pipes_and_files_and_the_right_answer_is_kept(
  finished, tmp_path, monkeypatch, capsys
):
  given, real, link = tmp_path / "in.jsonl", tmp_path / "real.jsonl", tmp_path / "link.jsonl"
  given.write_text('{"input": "thing", "output": "red", "mixture": 1}\n')
  arguments = ["--run", str(finished), "--input", str(given), "--output"]
  real.write_text("old")
  link.symlink_to(real)
  predict.main([*arguments, str(link)])
  [answer] = rows_of(real)
  assert link.is_symlink()
  assert (answer["reference"], set(answer["mixture"])) == ("red", set(tiny.TASKS))
  pipe, read = tmp_path / "pipe", []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
  reader.start()
  predict.main([*arguments, str(pipe)])
  reader.join()
  assert [json.loads(text) for text in read] == [answer]
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  code, complaint = tiny.run_program(
    predict, [*arguments, tmp_path / "nowhere/x"], monkeypatch, capsys
  )
  assert (code, f"there is no folder {tmp_path}/nowhere" in complaint) == (2, True)


def test_a_model_that_was_moved_is_named_and_told(world, finished, tmp_path, monkeypatch, capsys):
  run, model = shutil.copytree(finished, tmp_path / "run"), tmp_path / "moved"
  shutil.copytree(world[world.index("--backbone.path") + 1], model)
  values = json.loads((run / "config.json").read_text())
  values["backbone"]["path"] = str(tmp_path / "gone")
  (run / "config.json").write_text(json.dumps(values))
  for program, arguments in (
    (export, ["--task", "task001", "--output", str(tmp_path / "adapter")]),
    (predict, ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]),
  ):
    (tmp_path / "in.jsonl").write_text('{"input": "thing"}\n')
    arguments = ["--run", str(run), *arguments]
    code, complaint = tiny.run_program(program, arguments, monkeypatch, capsys)
    assert (code, f"backbone.path '{tmp_path}/gone': no such folder" in complaint) == (2, True)
    program.main([*arguments, "--backbone.path", str(model)])
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    other = tiny.model_folder(tmp_path / program.__name__, tiny.T5, seed=7)
    code, complaint = tiny.run_program(
      program, [*arguments, "--backbone.path", other], monkeypatch, capsys
    )
    assert (code, "does not hold the weights that it was trained on" in complaint) == (2, True)
  train.main([*world, "--output", str(run), "--backbone.path", str(model)])  # and it goes on


def test_a_question_with_a_token_that_the_model_has_no_row_for_is_named(
  world, finished, tmp_path, monkeypatch, capsys
):
  model = shutil.copytree(world[world.index("--backbone.path") + 1], tmp_path / "model")
  tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
  tokenizer.add_tokens([f"<new{number}>" for number in range(500)])
  tokenizer.save(str(model / "tokenizer.json"))
  questions = tmp_path / "in.jsonl"
  options = ["--run", str(finished), "--backbone.path", str(model), "--input", str(questions)]
  options += ["--output", str(tmp_path / "out.jsonl")]
  questions.write_text('{"input": "thing"}\n{"input": "thing <new499>"}\n')
  code, complaint = tiny.run_program(predict, options, monkeypatch, capsys)
  assert (code, "<new499>" in complaint) == (2, True), complaint
  assert not (tmp_path / "out.jsonl").exists()
  questions.write_text('{"input": "thing"}\n')
  predict.main(options)  # tokens that no text uses do no harm


def test_a_run_is_read_again_on_the_backbone_that_is_in_memory(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  answering, pairs = Answering(run), [("Name the colour.", "thing 3 is red")]
  before = list(answering(pairs))
  again = answering.renewed()
  assert again.built is answering.built
  newest = snapshots(run)[-1]
  capacity, inputs = answering.sizes
  built = answering.built
  mesh, backbone = built.mesh, built.backbone
  large = put_together(answering.options, mesh, backbone, 2 * capacity, inputs)
  learned, record = checkpoint.load(newest, large.start(0), grow=True)
  checkpoint.save(newest, learned, record | {"capacity": 2 * capacity})
  again = answering.renewed()
  assert again.sizes == (2 * capacity, inputs)
  assert again.built.backbone is built.backbone
  [(text, mixture)] = again(pairs)
  assert (text, list(mixture)) == (before[0][0], list(before[0][1]))
  assert mixture == pytest.approx(before[0][1], abs=1e-5)
  shutil.rmtree(newest)
  assert answering.renewed().tasks == list(tiny.TASKS)[:1]
  (run / "snapshots" / "00_task001_colour" / checkpoint.RECORD).write_text("{}")
  with pytest.raises(InputError, match="changed since it was written"):
    answering.renewed()


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, tensor=2)], ids=["one", "four"])
def test_answers_in_steps_are_those_at_once_on_any_mesh(finished, mesh):
  answering = Answering(finished, 4, mesh)
  pairs = [(text, row) for text, rows in tiny.TASKS.values() for row, _ in rows[:5]]
  pairs[3] = (None, "a prompt of many words " * 4)
  ready, found, parts = Ready(answering), [], []
  rows = [ready.row(*pair, "x") for pair in pairs]
  with jax.set_mesh(ready.mesh):
    for start in range(0, len(rows), 3):
      *begun, last = ready.answer(rows[start : start + 3])
      parts += [written.tokens.shape[1] for written in [*begun, last]]
      for ids, mixture in zip(last.tokens, last.mixtures, strict=True):
        found.append((ready.text(ids.tolist()), ready.mixture(mixture)))
  assert set(parts) == {1, 5, 8}
  for (text, mixture), (whole, other) in zip(found, answering(pairs), strict=True):
    assert (text, mixture) == (whole, pytest.approx(other, abs=2e-6))


# The method's part of config.json before each method had options of its own.
ONCE = {
  "replay_share": 0.02,
  "orthogonality_weight": 0.5,
  "sparsity_weight": 0.4,
  "kept_energy": 0.995,
  "pool_prompts": 10,
  "chosen_prompts": 4,
  "key_weight": 1.0,
  "lm_weight": 0.25,
  "kd_weight": 0.01,
  "pseudo_examples": 20,
  "task_known": False,
  "lookup_shrinkage": 0.1,
}


def test_a_run_from_before_methods_had_options_of_their_own_answers(finished, tmp_path):
  folder = shutil.copytree(finished, tmp_path / "run")
  values = json.loads((folder / "config.json").read_text())
  values["method"] |= ONCE
  values["fit"]["attention_learning_rate"] = values["method"].pop("attention_learning_rate")
  (folder / "config.json").write_text(json.dumps(values))
  answering = Answering(folder)
  assert answering.built.method.options.reflection_weight == 0.5
  assert same(answering.learned, Answering(finished).learned)


def test_predict_goes_back_to_the_snapshot_before_a_damaged_one(finished, tmp_path, capsys):
  shutil.copytree(finished, tmp_path / "run")
  harmed = max((tmp_path / "run" / "snapshots").iterdir()) / checkpoint.RECORD
  harmed.write_text("{}")
  [answer] = ask(tmp_path / "run", tmp_path, [{"input": "red"}])
  assert list(answer["mixture"]) == ["task001_colour"]
  assert str(harmed) in capsys.readouterr().err


def test_a_snapshot_that_is_missing_is_named_and_shifts_no_block(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  answering = Answering(run)
  (min((run / "snapshots").iterdir()) / checkpoint.MANIFEST).unlink()
  for reads in (lambda: Answering(run), answering.renewed):
    with pytest.raises(InputError, match=r"snapshots: that of task 1 is missing"):
      reads()


@pytest.mark.parametrize(
  ("program", "name"),
  [
    *((predict, name) for name in ("config.json", "predictions.jsonl", "snapshots/x")),
    *((program, name) for program in (export, report) for name in ("snapshots/x", "predictions")),
  ],
)
def test_nothing_is_written_over_what_a_run_has_left(
  program, name, finished, tmp_path, monkeypatch, capsys
):
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n')
  arguments = {
    predict: ["--run", finished, "--input", tmp_path / "q.jsonl"],
    export: ["--run", finished, "--what", "pool"],
    report: [finished],
  }[program] + ["--output", shutil.copytree(finished, tmp_path / "run") / name]
  code, line = tiny.run_program(program, arguments, monkeypatch, capsys)
  assert (code, f"{name.split('/')[0]} belongs to the run in" in line) == (2, True)


def test_predict_refuses_what_is_no_run_or_no_question(finished, tmp_path, monkeypatch, capsys):
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n{"inptu": "b"}\n')

  def run(*extra):
    return tiny.run_program(
      predict,
      ["--output", tmp_path / "o", "--input", tmp_path / "q.jsonl", *extra],
      monkeypatch,
      capsys,
    )

  assert 'q.jsonl:2: has no "input"; it has inptu' in run("--run", finished)[1]
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n')
  assert "not the folder of a run" in run("--run", tmp_path)[1]
  assert "there is no such folder" in run("--run", tmp_path / "nowhere")[1]
  complaint = run("--run", finished, "--output", tmp_path / "q.jsonl")[1]
  assert "is the file of the questions" in complaint
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
  assert [line.split(" | ")[0] for line in table[2:4]] == [
    "| better",
    "| sapt, routed, directions start",
  ]
  assert "99.0" in (tmp_path / "report" / "index.html").read_text()
  assert len((tmp_path / "report" / "comparison.csv").read_text().splitlines()) == 3
  (other / "scores.json").write_text(json.dumps(changed | {"tasks": ["another", "one"]}))
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
    "tasks": ["one", "two"],
    "steps": [5, 5],
    "seed": 0,
    "run": "one",
  }
  others = [
    {"seed": 1},
    {"pet": "prompt of 10"},
    {"label": "epi"},
    {"label": "epi", "run": "other"},
    {"label": "replay", "steps": [5, 9]},
    {"label": "replay", "steps": [5, 10]},
    {"label": "mocl", "options": {"fit.decay": "none", "fit.log_every": "1"}},
    {"label": "mocl", "options": {"fit.decay": "none", "fit.log_every": "2"}, "seed": 1},
    {"label": "mocl", "options": {"fit.decay": "cosine"}, "seed": 1},
  ]
  runs = [
    run | other | {"metrics": {"AP": 50.0 - number}} for number, other in enumerate([{}, *others])
  ]
  groups = {label: len(members) for label, members in report.grouped(runs).items()}
  assert groups == {
    "sapt, lora of rank 4": 2,
    "sapt, prompt of 10": 1,
    "epi, lora of rank 4, one": 1,  # the same seed twice: something else differs
    "epi, lora of rank 4, other": 1,
    "replay, lora of rank 4, 5+9 steps": 1,
    "replay, lora of rank 4, 5+10 steps": 1,
    "mocl, lora of rank 4, fit.decay none": 2,
    "mocl, lora of rank 4, fit.decay cosine": 1,
  }


def test_a_block_and_a_mean_mixture_are_exported_for_peft_and_as_a_model(
  finished, tmp_path, capsys
):
  for what in ("block", "mixture", "merged"):
    task = ["--what", what, "--task", "task002"]
    export.main(["--run", str(finished), *task, "--output", str(tmp_path / what)])
    assert "task002_count" in capsys.readouterr().out
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / what).iterdir()}
    assert len(modes) == 1  # weights can be read by those who can read the rest
    assert "task002_count" in (tmp_path / what / "README.md").read_text() or what == "mixture"
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

  backbone = Answering(finished).built.backbone
  name = "decoder.block.1.layer.1.EncDecAttention.v"
  model = load_file(tmp_path / "merged" / "model.safetensors")
  plain = load_file(backbone.folder / "model.safetensors")
  a = np.asarray(learned.blocks["lora"]["decoder"]["cross"]["v"]["a"][1])  # (D_in, T, R)
  factors = zip(weights, np.swapaxes(a, 0, 1), np.asarray(pool), strict=True)
  change = 32 / 2 * sum(weight * x @ y for weight, x, y in factors)
  np.testing.assert_allclose(
    model[f"{name}.weight"], plain[f"{name}.weight"] + change.T, rtol=1e-5, atol=1e-7
  )
  changed = {key for key in plain if not np.array_equal(plain[key], model[key])}
  assert {key.rsplit(".", 2)[1] for key in changed} == {"q", "v"}
  assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (
    backbone.folder / "tokenizer.json"
  ).read_bytes()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--task", "task0"], "fits several of the run: task001_colour, task002_count"),
    (["--task", "task9"], "not a task"),
    (["--what", "pool"], "no centre"),
    (["--what", "merged", "--task", "task002", "--output", "FINISHED"], "is not empty"),
    (["--task", "task002", "--output", "FINISHED/.."], "is not empty"),
    (["--task", "task002", "--output", ""], "--output is empty"),
  ],
)
def test_what_cannot_be_exported_is_said(finished, tmp_path, arguments, named):
  arguments = [argument.replace("FINISHED", str(finished)) for argument in arguments]
  with pytest.raises(InputError, match=named):
    export.main(["--run", str(finished), "--output", str(tmp_path / "out"), *arguments])


def test_changed_tasks_name_how_they_are_learned_anew():
  said = learned_anew(Path("r"), ["tasks.a.b.dev", "tasks.a.b.train", "tasks.c.definition"])
  forgotten = [f"python -m sapt_jax.forget --run r --task {name}" for name in ("a.b", "c")]
  assert (
    said == f"; to learn it as it is now: {' and '.join(forgotten)}, then the same command again"
  )
  assert not learned_anew(Path("r"), ["tasks.a.dev", "backbone.weights"])


def test_the_last_snapshot_that_is_missing_is_named(finished, tmp_path, capsys):
  run = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(max((run / "snapshots").iterdir()))
  ask(run, tmp_path, [{"input": "red"}])
  assert "run: no snapshot of task002_count, though scores" in capsys.readouterr().err


def test_questions_with_numbers_that_json_has_not_are_refused(tmp_path):
  (tmp_path / "q.jsonl").write_text('{"input": "a"}\n{"input": "b", "score": NaN}\n')
  with pytest.raises(InputError, match=r"q.jsonl:2: holds NaN or Infinity"):
    predict.read_questions(tmp_path / "q.jsonl")
