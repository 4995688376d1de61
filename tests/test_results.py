"""Tables are made from committed runs, and only from fair ones."""

import copy
import json

import pytest
import results

from sapt_jax.errors import InputError


def run(seed, ap, **options):
  """What docs/results holds of one run: two tasks of two test rows."""
  rows = [[100.0, 0.0], [ap, ap]]
  usual = {"fit.steps": 100, "generator.keep": 0.08, "pet.new_block": "fresh"}
  return {
    "seed": seed,
    "tasks": ["a", "b"],
    "metrics": {"AP": ap, "F.Ra": 0.5},
    "rows": rows,
    "options": usual | options,
    "made": {"commit": "abc123", "machine": "a laptop"},
  }


@pytest.fixture
def rows():
  tuned = {"method.name": "epi", "fit.learning_rate": 1.0}
  return {
    "sapt": [run(seed, 80.0 + seed, **{"method.name": "sapt"}) for seed in range(3)],
    "epi": [run(seed, 70.0, **tuned) for seed in range(3)],
  }


def test_a_table_ranks_by_mean_and_gives_the_difference_to_the_best(rows):
  lines = results.table(rows).splitlines()
  assert lines[2].startswith(
    "| sapt | 8% pseudo inputs | 80.0, 81.0, 82.0 | 81.0 | 1.0 | 0.5 | - |"
  )
  assert lines[3].startswith(
    "| epi | means | 70.0, 70.0, 70.0 | 70.0 | 0.0 | 0.5 | 11.0 | **+8.5 to +13.5**"
  )
  assert lines[-1] == "Run at abc123 on a laptop."


def test_methods_that_know_more_come_last_and_are_marked(rows):
  for row, options in (
    ("per_task", {"method.name": "per_task"}),
    ("prog_prompt_known", {"method.name": "prog_prompt", "method.task_known": True}),
    ("multi_task", {"method.name": "multi_task"}),
  ):
    rows[row] = [run(seed, 90.0, **options) for seed in range(3)]
  names = [line.split("|")[1].strip() for line in results.table(rows).splitlines()[2:7]]
  assert names[:2] == ["sapt", "epi"]
  assert set(names[2:]) == {
    "per task (told the task)",
    "prog prompt (told the task)",
    "multi task (all tasks at once)",
  }


def test_runs_that_were_tuned_are_fair_and_others_are_named(rows):
  assert list(results.unfair(rows)) == []
  for change, message in [
    ({"fit.steps": 200}, "fit.steps 200 (in sapt: 100)"),
    ({"pet.new_block": "directions"}, "pet.new_block directions (in sapt: fresh)"),
    ({"method.replay_share": 0.5}, "keeps 0.5 of earlier rows, SAPT 0.08"),
  ]:
    changed = copy.deepcopy(rows)
    changed["epi"][1]["options"] |= change
    [line] = results.unfair(changed)
    assert line.startswith("epi, seed 1")
    assert message in line


def test_missing_seeds_other_tasks_and_changed_files_are_named(rows):
  changed = copy.deepcopy(rows)
  changed["epi"].pop()
  assert "different seeds" in next(results.unfair(changed))
  changed = copy.deepcopy(rows)
  changed["epi"][0]["tasks"] = ["b", "a"]
  assert list(results.unfair(changed)) == ["epi, seed 0: other tasks than sapt"]
  changed = copy.deepcopy(rows)
  changed["epi"][1]["data"] = "of other rows"
  assert list(results.unfair(changed)) == ["epi, seed 1: other rows than sapt with this seed"]
  changed = copy.deepcopy(rows)
  changed["epi"][0]["made"]["commit"] = "abc123+"
  assert "made from changed files" in next(results.unfair(changed))


def test_a_document_gets_its_tables_and_keeps_its_text(rows):
  text = "before\n<!-- table mini -->\nold\n<!-- end -->\nafter\n"
  made = results.with_tables(text, {"mini": rows})
  assert made == f"before\n<!-- table mini -->\n{results.table(rows)}<!-- end -->\nafter\n"
  assert results.with_tables(made, {"mini": rows}) == made
  brief = results.with_tables(text.replace("table mini", "table mini brief"), {"mini": rows})
  assert "| sapt | 8% pseudo inputs | 81.0 | 1.0 | 0.5 | - | - |\n" in brief
  with pytest.raises(InputError, match="table mini: no run of it"):
    results.with_tables(text, {})


def test_what_is_collected_of_a_run_names_no_place_of_the_machine(tmp_path, monkeypatch):
  folder = tmp_path / "mini.epi.0"
  folder.mkdir()
  options = {"method": {"name": "epi"}, "backbone": {"path": "/home/x/t5", "bits": 0}, "seed": 0}
  (folder / "config.json").write_text(json.dumps(options))
  (folder / "scores.json").write_text(json.dumps({"method": "epi", "seed": 0, "extra": 1}))
  monkeypatch.setattr(results, "DATA", tmp_path / "results")
  results.collect([str(folder)])
  assert results.read_all()["mini"]["epi"] == [
    {"method": "epi", "seed": 0, "options": {"method.name": "epi", "backbone.bits": 0, "seed": 0}}
  ]


def test_committed_tables_are_those_of_the_committed_runs_and_fair():
  tables = results.read_all()
  for document in results.DOCUMENTS:
    text = document.read_text("utf-8")
    assert results.with_tables(text, tables) == text
    for match in results.TABLE.finditer(text):
      assert list(results.unfair(tables[match.group("name")])) == []
      assert list(results.untuned(tables, match.group("name"))) == []
      assert list(results.otherwise_tuned(tables, match.group("name"))) == []


@pytest.fixture
def tables(rows):
  """A table of epi, tuned at three rates of its blocks, then at three of its keys."""
  tuning = {
    f"epi@fit.learning-rate={rate}": [run(100, ap, **{"fit.learning_rate": rate, KEYS: 0.1})]
    for rate, ap in ((0.3, 70.0), (1.0, 75.0), (3.0, 60.0))
  } | {
    f"epi@method.key-learning-rate={rate}": [run(100, ap, **{"fit.learning_rate": 1.0, KEYS: rate})]
    for rate, ap in ((0.01, 76.0), (1.0, 50.0))
  }
  best = {"method.name": "epi", "fit.learning_rate": 1.0, KEYS: 0.01}
  compared = {"epi": [run(seed, 70.0, **best) for seed in range(3)]}
  return {"tune-lora": tuning, "mini-lora": compared}


KEYS = "method.key_learning_rate"


def test_rows_at_other_rates_than_the_best_are_named(tables):
  assert list(results.untuned(tables, "mini-lora")) == []
  tables["mini-lora"]["epi"][1]["options"][KEYS] = 0.1
  [line] = results.untuned(tables, "mini-lora")
  assert line == f"epi, seed 1: {KEYS} 0.1 (tuning found 0.01)"


def test_another_number_or_order_of_tries_is_named(tables):
  def said():
    return list(results.otherwise_tuned(tables, "mini-lora"))

  assert said() == []
  tuning = tables["tune-lora"]
  tuning["epi@method.key-learning-rate=0.01"][0]["options"]["fit.learning_rate"] = 0.3
  assert said() == [f"epi: {KEYS} was tried beside blocks at {{0.3}}; their best is 1.0"]
  del tuning["epi@method.key-learning-rate=0.01"]
  assert said() == [f"epi: {KEYS} was tried at [0.1, 1.0], which are not three"]
  del tuning["epi@fit.learning-rate=3.0"]
  assert said()[0] == "epi: fit.learning_rate was tried at [0.3, 1.0], which are not three"
  tables["tune-lora"] = {}
  assert said() == ["epi: no rate of its blocks was tuned"]


def test_a_table_has_the_rates_of_the_best_run_of_tuning():
  best = {"fit.learning_rate": 0.3, "method.key_learning_rate": 0.1, "method.seed_length": 3}
  tables = {
    "tune-lora": {
      "epi@fit.learning-rate=0.3": [run(100, 60.0, **best)],
      "epi@method.key-learning-rate=1": [run(100, 50.0, **{"fit.learning_rate": 0.3})],
      "sapt@fit.learning-rate=1": [run(100, 90.0, **{"fit.learning_rate": 1.0})],
    },
    "mini-lora": {"epi": [run(0, 1.0, **best), run(1, 1.0, **(best | {"fit.learning_rate": 1.0}))]},
  }
  found = results.rates(tables, "lora", "epi")
  assert found == {"fit.learning_rate": 0.3, "method.key_learning_rate": 0.1}
  assert list(results.untuned(tables, "mini-lora")) == [
    "epi, seed 1: fit.learning_rate 1.0 (tuning found 0.3)"
  ]
  with pytest.raises(InputError, match="mocl: no run of tune-lora"):
    results.rates(tables, "lora", "mocl")
