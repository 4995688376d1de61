"""Tasks that are learned otherwise than the rest of the stream."""

import json

import pytest

from sapt_jax import config, train
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.methods.sequential import SequentialOptions
from sapt_jax.paper import paper
from sapt_jax.run_inputs import fits_of
from tests import tiny

TASKS = [Task(name, "Say.", (Example("x", ("y",)),), (), ()) for name in ("mnli", "cb", "copa")]


def fits(*entries, **more):
  stream = config.Stream(fit=entries)
  return fits_of(config.Config(SequentialOptions(), stream=stream, **more), TASKS)


def test_what_is_said_of_one_task_changes_that_one_alone():
  plain, cb, copa = fits("cb:steps=100", "cop:learning_rate=1e-2", "cb:validate_epochs=2")
  assert plain == config.Fit()
  assert (cb.steps, cb.validate_epochs, cb.learning_rate) == (100, 2, plain.learning_rate)
  assert (copa.steps, copa.learning_rate) == (0, 1e-2)


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ("cb", "'cb': must be TASK:OPTION=VALUE"),
    ("cb:shapes=3", "shapes are those of the whole stream: --fit.shapes"),
    ("wic:steps=3", "'wic' is not in the stream"),
    ("c:steps=3", "'c' is ambiguous"),
    ("cb:stepz=3", "fit has no stepz: steps, epochs"),
    ("cb:steps=many", "'many' is no int"),
    ("cb:steps=-1", "fit.steps -1: must not be negative"),
  ],
)
def test_a_wrong_entry_is_named(entry, message):
  with pytest.raises(InputError, match=message):
    fits(entry)


def test_a_batch_of_one_task_must_fit_the_mesh_too():
  with pytest.raises(InputError, match=r"multiple of mesh\.data"):
    fits("cb:batch_size=3", mesh=config.Mesh(fsdp=2))


def test_a_run_makes_the_steps_of_each_task(tmp_path):
  options = ["--method.name", "sequential", "--stream.fit", "task002:steps=2", "task001:steps=3"]
  train.main([*tiny.world(tmp_path), *options, "--output", str(tmp_path / "run")])
  assert json.loads((tmp_path / "run" / "scores.json").read_text())["steps"] == [3, 2]


def test_the_paper_learns_six_tasks_in_fewer_steps_on_llama():
  assert "cb:steps=100" in paper("long_sequence", 1, "llama2_7b").stream.fit
  assert paper("long_sequence", 1, "t5_large").stream.fit == ()
