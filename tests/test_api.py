"""The library in a few calls, and the one command for all programs."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import tiny

import sapt_jax
from sapt_jax import __main__ as command
from sapt_jax import run_options, train
from sapt_jax.errors import InputError
from tests.runs import rows_of, scores


def test_a_pool_answers_as_its_run_did(finished):
  pool = sapt_jax.load(str(finished))
  assert pool.tasks == tuple(tiny.TASKS)
  predictions = rows_of(finished / "predictions.jsonl")[5:]
  for number, (definition, rows) in enumerate(tiny.TASKS.values()):
    answers = pool.answer([text for text, _ in rows[:5]], instruction=definition)
    expected = predictions[5 * number : 5 * number + 5]
    assert [answer.text for answer in answers] == [row["prediction"] for row in expected]
    assert all(sum(answer.mixture.values()) == pytest.approx(1, abs=1e-5) for answer in answers)
  assert pool.answer([]) == []
  assert pool.answer(text for text in ["red"]) == pool.answer(["red"])
  with pytest.raises(InputError, match="half of a surrogate pair"):
    pool.answer(["a\ud800b"])
  with pytest.raises(TypeError, match="give a list"):
    pool.answer("one text")
  with pytest.raises(InputError, match="leaves no room for it"):
    pool.answer(["thing"], instruction="long " * 100)
  for wrong in ("4", 1.5, True, -1):
    with pytest.raises(InputError, match=r"batch_size .*must be a whole number"):
      sapt_jax.load(finished, batch_size=wrong)
  with pytest.raises(InputError, match="name of a run is empty"):
    sapt_jax.load("")
  with pytest.raises(InputError, match="/nowhere"):
    sapt_jax.load("/nowhere")


def test_learn_goes_on_as_the_command_does(world, finished, tmp_path):
  config = run_options.config_of(train.options(world))
  for wrong, words in (
    ("", "output is empty"),
    (b"x", "must be a text"),
    ("a\0b", "zero character"),
  ):
    with pytest.raises(InputError, match=words):
      sapt_jax.learn(config, wrong)
  with pytest.raises(InputError, match="nope"):
    sapt_jax.learn(config, tmp_path / "new", start_from=tmp_path / "nope")
  folder = shutil.copytree(finished, tmp_path / "run")
  result = sapt_jax.learn(config, folder)
  assert result["scores"] == scores(finished)["scores"]
  assert result == json.loads((folder / "scores.json").read_text())


def test_importing_the_library_imports_nothing_else():
  program = "import sys, sapt_jax; sys.exit(sapt_jax.__version__ == '' or 'jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", program], check=True)
  with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
    _ = sapt_jax.nothing


def test_the_command_runs_each_program_and_is_installed(capsys, monkeypatch):
  for name in command.PROGRAMS:
    place = f"{name}.__main__" if name in command.PACKAGES else name
    assert importlib.util.find_spec(f"sapt_jax.{place}"), name
    monkeypatch.setattr(sys, "argv", ["sapt-jax", name, "--nonsense"])
    with pytest.raises(SystemExit) as stop:
      command.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.replace("\n", "")
    assert f"error: --nonsense: no such option (see sapt-jax {name} --help-all)" in said
  for arguments, code in ((["--help"], None), (["-h"], None), (["--version"], None), (["no"], 2)):
    monkeypatch.setattr(sys, "argv", ["sapt-jax", *arguments])
    if code is None:
      command.main()
      continue
    with pytest.raises(SystemExit) as stop:
      command.main()
    assert stop.value.code == code
  said = capsys.readouterr()
  assert "usage: sapt-jax PROGRAM" in said.out
  assert "no such program; give one of train, predict" in said.err
  [script] = importlib.metadata.entry_points(name="sapt-jax", group="console_scripts")
  assert script.load() is command.main
