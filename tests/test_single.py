"""FWT holds a run's scores beside those of blocks trained alone: only under the same conditions."""

import dataclasses
import json

import pytest

from sapt_jax import config
from sapt_jax.errors import InputError
from sapt_jax.methods.per_task import PerTaskOptions
from sapt_jax.methods.sapt import SaptOptions
from sapt_jax.single import single_scores

RUN = config.Config(SaptOptions())


def finished(folder, options, weights="same", method="per_task"):
  """A folder as a finished run with these options leaves it."""
  folder.mkdir()
  asked = dataclasses.asdict(options) | {"backbone.weights": weights}
  (folder / "config.json").write_text(json.dumps(asked))
  scores = {"method": method, "tasks": ["a", "b"], "scores": [[10.0, None], [10.0, 30.0]]}
  (folder / "scores.json").write_text(json.dumps(scores))
  return dataclasses.replace(RUN, single=str(folder))


def scores_beside(run, weights="same"):
  return single_scores(run, ["a", "b"], None, weights, None)


ALONE = dataclasses.replace(RUN, method=PerTaskOptions())


def test_scores_are_those_of_each_task_when_it_was_learned(tmp_path):
  assert scores_beside(finished(tmp_path / "run", ALONE)) == [10.0, 30.0]


def test_what_changes_no_score_may_differ(tmp_path):
  other = dataclasses.replace(
    ALONE,
    fit=dataclasses.replace(ALONE.fit, accumulation=2, checkpoint_every=7, log_every=1),
    evaluation=dataclasses.replace(ALONE.evaluation, every_task=False, batch_size=8),
    mesh=config.Mesh(fsdp=2),
    generator=config.Generator(rank=4),
  )
  assert scores_beside(finished(tmp_path / "run", other)) == [10.0, 30.0]


@pytest.mark.parametrize(
  ("part", "values"),
  [
    ("pet", {"kind": "prompt"}),
    ("pet", {"rank": 8}),
    ("pet", {"alpha": 16.0}),
    ("fit", {"steps": 5}),
    ("fit", {"epochs": 3}),
    ("fit", {"batch_size": 16}),
    ("fit", {"learning_rate": 1e-3}),
    ("fit", {"validate_every": 2}),
    ("data", {"max_source_length": 64}),
    ("data", {"max_target_length": 8}),
    ("data", {"max_train": 4}),
    ("data", {"max_test": 4}),
    ("data", {"protocol": "published"}),
    ("backbone", {"dtype": "bfloat16"}),
    ("backbone", {"bits": 8}),
    ("evaluation", {"metric": "rouge_l"}),
  ],
)
def test_whatever_changes_a_score_is_listed(tmp_path, part, values):
  options = dataclasses.replace(getattr(ALONE, part), **values)
  run = finished(tmp_path / "run", dataclasses.replace(ALONE, **{part: options}))
  [(name, value)] = values.items()
  with pytest.raises(InputError, match=rf"{part}.{name} {value} \(here .*not to be held beside"):
    scores_beside(run)


def test_another_seed_other_weights_and_another_method_are_refused(tmp_path):
  with pytest.raises(InputError, match=r"seed 1 \(here 0\)"):
    scores_beside(finished(tmp_path / "seed", dataclasses.replace(ALONE, seed=1)))
  with pytest.raises(InputError, match=r"backbone.weights other \(here same\)"):
    scores_beside(finished(tmp_path / "weights", ALONE, weights="other"))
  with pytest.raises(InputError, match="a per_task run of all tasks is needed, not sapt"):
    scores_beside(finished(tmp_path / "method", RUN, method="sapt"))
