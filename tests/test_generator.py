"""Pseudo inputs: what is kept of a generator's samples, and those that are read instead."""

import dataclasses
import json

import pytest
import tiny

from sapt_jax import train
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.generator import Stored, clean, distinct_2
from tests.runs import rows_of

TRAINED = "the red kite flew over the old stone bridge at noon"
TASK = Task("task001", "Say it.", (Example(TRAINED, ("a",)), Example("short one", ("b",))), (), ())


@pytest.mark.parametrize(
  ("sample", "fate"),
  [
    ("Say it.\nInput: a blue boat came home", "kept"),
    ("Say it. a blue boat came home", "malformed"),
    ("Say it. Input: ", "malformed"),
    ("Input: a blue boat", "malformed"),
    (f"Say it. Input: {TRAINED.replace(' ', '  ')}", "verbatim"),
    (f"Say it. Input: {TRAINED} today", "near_verbatim"),
    ("Say it. Input: short one", "verbatim"),
    ("Say it. Input: short one more", "kept"),  # fewer than four words: as a whole
    ("Say it. Input: the red kite flew under the new steel gate at night", "kept"),
  ],
)
def test_only_well_formed_and_new_samples_are_kept(sample, fate):
  pseudo = clean([sample], TASK, 3, 0.8)
  assert pseudo.figures[fate] == 1
  assert len(pseudo.pairs) == (fate == "kept")
  assert pseudo.figures["yield"] == (fate == "kept")


def test_a_task_without_a_definition_takes_samples_without_one():
  bare = dataclasses.replace(TASK, definition="")
  assert clean(["Input: a blue boat"], bare, 1, 0.8).pairs == [("", "a blue boat")]


def test_a_definition_that_leaves_no_room_for_an_input_is_malformed():
  samples = ["Say it. Input: a blue boat", f"{'Say it. ' * 50}Input: a blue boat"]
  pseudo = clean(samples, TASK, 2, 0.8, has_room=lambda definition: len(definition) < 100)
  assert (pseudo.pairs, pseudo.figures["malformed"]) == ([("Say it.", "a blue boat")], 1)


def test_a_copy_is_as_near_as_the_option_says():
  # 4 of its 9 runs of four words stand in TRAINED.
  half = "Say it. Input: the red kite flew over the old tower and fell down"
  assert [clean([half], TASK, 1, most).figures["kept"] for most in (0.4, 0.5)] == [0, 1]


def test_samples_are_kept_once_and_no_more_than_wanted():
  samples = [f"Say it. Input: boat {i % 3} came home" for i in range(5)]
  pseudo = clean(samples, TASK, 2, 0.8)
  assert [text for _, text in pseudo.pairs] == ["boat 0 came home", "boat 1 came home"]
  assert (pseudo.figures["drawn"], pseudo.figures["repeated"], pseudo.figures["yield"]) == (
    5,
    2,
    0.6,
  )


def test_diversity_is_the_share_of_different_pairs_of_words():
  assert distinct_2(["a b c", "a b d"]) == 0.75
  assert distinct_2(["a b", "a b"]) == 0.5
  assert distinct_2(["alone"]) == 0


def write_published(root, name, texts):
  folder = root / "SuperNI" / name
  folder.mkdir(parents=True)
  (folder / "train.json").write_text(
    json.dumps(tiny.split("Say it.", [(text, "not used") for text in texts]))
  )


def test_pseudo_inputs_are_read_in_the_published_layout_and_from_another_run(tmp_path):
  write_published(tmp_path, "task001", ["one", "two"])
  (tmp_path / "00_task002.jsonl").write_text(
    json.dumps({"definition": "Count.", "input": "drei"}) + "\n"
  )
  stored = Stored.read(str(tmp_path), "superni", ["task001", "task002"], bool)
  assert stored.pairs == {
    "task001": [("Say it.", "one"), ("Say it.", "two")],
    "task002": [("Count.", "drei")],
  }
  assert stored.most == 2


def test_a_task_whose_name_ends_another_is_not_taken_for_it(tmp_path):
  (tmp_path / "00_reverse_sort.jsonl").write_text(
    json.dumps({"definition": "Count.", "input": "drei"}) + "\n"
  )
  with pytest.raises(InputError, match="no pseudo inputs of sort"):
    Stored.read(str(tmp_path), "superni", ["sort"], bool)


def test_pseudo_inputs_whose_definition_leaves_no_room_are_refused(tmp_path):
  (tmp_path / "00_task002.jsonl").write_text(
    json.dumps({"definition": "Count.", "input": "drei"}) + "\n"
  )
  with pytest.raises(InputError, match=r"'Count\.' of task002 leaves no room"):
    Stored.read(str(tmp_path), "superni", ["task002"], lambda definition: False)


@pytest.mark.parametrize(
  ("line", "complaint"),
  [
    ("", "no pseudo inputs of task002"),
    ("{", r"00_task002.jsonl:1: not JSON"),
    ("[]", r"00_task002.jsonl:1: not an object"),
    ('{"input": "x"}', r"00_task002.jsonl:1: not an object"),
  ],
)
def test_what_is_missing_or_broken_is_named(tmp_path, line, complaint):
  if line:
    (tmp_path / "00_task002.jsonl").write_text(line + "\n")
  with pytest.raises(InputError, match=complaint):
    Stored.read(str(tmp_path), "superni", ["task002"], bool)


def test_a_run_reflects_on_the_pseudo_inputs_it_was_given(tmp_path):
  model = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  options = tiny.world(tmp_path)
  for name, (_, rows) in tiny.TASKS.items():
    write_published(tmp_path / "pseudo", name, [f"other {text}" for text, _ in rows[:3]])
  options += ["--backbone.path", str(model), "--generator.folder", str(tmp_path / "pseudo")]
  run = tmp_path / "run"
  train.main([*options, "--fit.steps", "2", "--output", str(run)])
  rows = rows_of(run / "metrics.jsonl")
  assert [row["pseudo_inputs"]["read"] for row in rows if "pseudo_inputs" in row] == [3, 3]
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 1, 2]  # no generator was trained
  assert len(rows_of(run / "pseudo_inputs/00_task001_colour.jsonl")) == 3
  reflections = {row["index"]: row["reflection"] for row in rows if "reflection" in row}
  assert reflections[0] == 0 < reflections[1]
