"""The commands of docs/your_own_tasks.md, and docs/run_folder.md, as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import rows_of, scores

# Fewer steps than a user's: what the page promises of a run holds after any number.
FEWER = "--fit.steps 8 --generator.steps 8"
PAGE = Path(__file__).parent.parent / "docs/your_own_tasks.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the page's commands were given."""
  folder = tmp_path_factory.mktemp("own_tasks")
  text = re.sub(
    r"^```.*?^```", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
  )
  commands = "".join(re.findall(r"^    (.*\n)", text, flags=re.MULTILINE))
  assert commands.count("sapt_jax.train ") == 2
  commands = commands.replace("sapt_jax.train ", f"sapt_jax.train {FEWER} ")
  path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  done = subprocess.run(
    ["bash", "-e", "-c", commands],
    cwd=folder,
    env=os.environ | {"PATH": path, "PYTHONPATH": str(PAGE.parent.parent)},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  sizes = "film_mood: 324 train, 36 dev, 40 test"
  assert sizes in done.stdout
  assert done.stdout.count("knows the little language") == 1  # when nothing has been learned yet
  return folder


def test_a_fourth_task_is_learned_and_the_first_three_are_kept(folder):
  first, later = (rows_of(folder / f"{name}.jsonl") for name in ("answers", "later"))
  assert all(row["output"] for row in first)
  assert [row["output"] for row in later] == [row["output"] for row in first]
  assert [set(row["mixture"]) for row in later] == [
    {"film_mood", "headline_section", "parcel_town", "chest_content"}
  ] * 2


def test_a_forgotten_task_is_gone(folder):
  after = rows_of(folder / "after.jsonl")
  assert after[0]["output"] == rows_of(folder / "answers.jsonl")[0]["output"]
  assert set(after[1]["mixture"]) == {"film_mood", "headline_section", "chest_content"}
  result = scores(folder / "runs/mine")
  assert result["tasks"] == ["film_mood", "headline_section", "chest_content"]
  assert result["scores"][-1][:2] == [None, None]
  assert not list((folder / "runs/mine").rglob("*parcel*"))


def test_the_page_of_a_runs_folder_names_all_that_is_in_one(finished, tmp_path, monkeypatch):
  """And its few lines of Python read it."""
  text = (PAGE.parent / "run_folder.md").read_text(encoding="utf-8")
  known = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[\w.]+", code)}
  record = next(finished.glob("snapshots/*/record.json"))
  log = {key for row in rows_of(finished / "metrics.jsonl") for key in row}
  assert {*scores(finished), *json.loads(record.read_text()), *log} <= known
  assert {"learn_s", "loss", "pseudo_inputs"} <= log
  assert json.loads(record.read_text())["data"].keys() <= known
  assert {path.name for path in finished.iterdir()} <= known
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs/mini").symlink_to(finished)
  monkeypatch.chdir(tmp_path)
  values = {}
  exec("".join(re.findall(r"^    (.*\n)", text, flags=re.MULTILINE)), values)
  assert values["losses"]
