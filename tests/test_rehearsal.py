"""What tasks are learned from: their own rows, and what replay and multi-task learning add."""

import numpy as np
import pytest

from sapt_jax.data.rehearsal import draw
from tests.classroom import NOWHERE, Study, build, stream


def test_drawn_rows_are_a_fixed_share_in_their_own_order():
  rows = list(range(150))
  assert draw(rows, 0.02, 1) == draw(rows, 0.02, 1) == sorted(draw(rows, 0.02, 1))
  assert draw(rows, 0.02, 1) != draw(rows, 0.02, 2)
  assert [len(draw(rows[:n], 0.02, 0)) for n in (150, 149, 20)] == [3, 2, 1]
  assert draw(rows, 0, 0) == []
  assert draw(rows, 1.0, 0) == rows


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
  assert (first.rows, first.counted) == ([], [])
  assert (last.counted, list(last.judged)) == ([12, 10], [0, 1])
