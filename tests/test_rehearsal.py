"""What tasks are learned from: their own rows, and what replay and multi-task learning add."""

import numpy as np
import pytest

from sapt_jax import config
from sapt_jax.data.rehearsal import draw
from tests.classroom import NOWHERE, Study, build, stream


def test_drawn_rows_are_as_many_as_asked_for_in_their_own_order():
  rows = list(range(150))
  assert draw(rows, 3, 1) == draw(rows, 3, 1) == sorted(draw(rows, 3, 1))
  assert draw(rows, 3, 1) != draw(rows, 3, 2)
  assert [len(draw(rows, count, 0)) for count in (0, 1, 150, 999)] == [0, 1, 150, 150]
  assert draw(rows, 150, 0) == rows


def test_replay_keeps_as_many_rows_as_sapt_keeps_pseudo_inputs_unless_told_otherwise():
  sampling = config.Generator(keep=0.1, keep_at_least=4)
  study = Study(NOWHERE, sampling=sampling)
  assert [build("replay").kept(rows, study) for rows in (100, 20)] == [10, 4]
  assert [build("replay", replay_share=0.02).kept(rows, study) for rows in (150, 20)] == [3, 1]


def lessons(name, **options):
  """What each of two tasks of 12 and 10 rows is learned from."""
  tasks, method = stream(12, 10), build(name, **options)
  return tasks, [method.lesson(None, Study(NOWHERE, index=i, stream=tasks)) for i in range(2)]


def rows_by_task(lesson):
  numbers, counts = np.unique([row.task for row in lesson.rows], return_counts=True)
  return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("sequential", {}, [{0: 12}, {1: 10}]),
    ("sapt", {}, [{0: 12}, {1: 10}]),
    ("replay", {"replay_share": 0.3}, [{0: 12}, {0: 3, 1: 10}]),
    ("multi_task", {}, [{}, {0: 12, 1: 10}]),
  ],
)
def test_what_the_tasks_are_learned_from(name, options, expected):
  tasks, found = lessons(name, **options)
  assert [rows_by_task(lesson) for lesson in found] == expected
  texts = [bytes(row.source) for row in found[1].rows if row.task == 0]
  assert set(texts) <= {example.input.encode() for example in tasks[0].train.examples}
  assert len(set(texts)) == len(texts)


def test_multi_task_learning_takes_the_steps_of_all_tasks_and_is_judged_on_all():
  _, (first, last) = lessons("multi_task")
  assert (first.rows, first.counted) == ([], {})
  assert (last.counted, list(last.judged)) == ({0: 12, 1: 10}, [0, 1])
