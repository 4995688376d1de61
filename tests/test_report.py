"""The page that a report is: what stands in it, and how it behaves in a real browser."""

import json
import re
import shutil

import pytest
import tiny

from sapt_jax import report
from sapt_jax.errors import InputError
from sapt_jax.report import names_of
from sapt_jax.run_story import read_scores, story
from tests.browser import browser
from tests.runs import killed_after, rows_of, scores


def data_of(page):
  """The values that the page draws."""
  return json.loads(re.search(r'type="application/json">(.*)</script>\n<script>', page)[1])


def changed_run(finished, place, label):
  """A copy of a run under another name: its method, and answers of the first task, are others."""
  run = shutil.copytree(finished, place)
  values = scores(run)
  values |= {"label": label, "metrics": values["metrics"] | {"AP": 99.0}}
  (run / "scores.json").write_text(json.dumps(values))
  options = json.loads((run / "config.json").read_text())
  options["fit"]["learning_rate"] = 0.25
  (run / "config.json").write_text(json.dumps(options))
  return run


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
  """The folder of a report on two runs."""
  folder = tmp_path_factory.mktemp("report")
  other = changed_run(finished, folder / "other", "x</script><b>y & z_1")
  report.main([str(finished), str(other), "--output", str(folder / "report")])
  return folder / "report"


def test_the_page_holds_what_the_runs_hold(place, finished):
  data = data_of((place / "index.html").read_text())
  run, other = data["runs"]
  assert (run["run"], other["run"]) == ("run", "other")
  assert run["scores"] == scores(finished)["scores"]
  assert [len(row) for row in run["learning"]] == [1, 2]
  assert [len(row) for row in run["answering"]] == [2, 2]
  log = rows_of(finished / "metrics.jsonl")
  first = run["losses"][0]
  assert first["points"][-1] == [6, next(row["loss"] for row in log if row.get("step") == 6)]
  assert {(curve["task"], curve["phase"]) for curve in run["losses"]} >= {
    (task, phase) for task in run["tasks"] for phase in ("learn", "inputs")
  }
  assert [row["steps"] for row in run["cost"]] == scores(finished)["steps"]
  assert run["cost"][0]["learn_s"] == next(row["learn_s"] for row in log if "learn_s" in row)
  assert [row["task"] for row in run["pseudo"]] == run["tasks"]
  assert run["pseudo"][0]["figures"]["drawn"] > 0
  assert data["options"] == [
    ["option", "run", "other"],
    ["fit.learning_rate", run["options"]["fit.learning_rate"], "0.25"],
  ]
  assert data["groups"] == {"x</script><b>y & z_1": [1], run["label"]: [0]}


def test_answers_that_became_right_or_wrong_are_counted_and_shown(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  [of] = story(run, read_scores(run))["answers"]
  records = [json.loads(file.read_text()) for file in sorted(run.glob("snapshots/*/record.json"))]
  before, after = (record["rows"][0] for record in records)
  more = [b - a for a, b in zip(before, after, strict=True)]
  assert of["gained_count"] == sum(x > 0 for x in more)
  assert of["lost_count"] == sum(x < 0 for x in more)
  answers = rows_of(next(run.glob("predictions/01_*.jsonl")))
  for kind in ("gained", "lost"):
    for one in of[kind]:
      assert one["after"] in [row["prediction"] for row in answers if row["input"] == one["input"]]
      assert one["before"] != one["after"]


def test_answers_that_are_no_answers_are_named_with_their_place(
  finished, tmp_path, monkeypatch, capsys
):
  run = shutil.copytree(finished, tmp_path / "run")
  file = next(run.glob("predictions/00_*.jsonl"))
  file.write_text("[1]\n")
  code, line = tiny.run_program(report, [run, "--output", tmp_path / "r"], monkeypatch, capsys)
  assert (code, f"{file}:1: must be an object, not list" in line) == (2, True)


@pytest.mark.parametrize(
  "harm",
  [
    {"tasks": "ab"},
    {"scores": [[1.0], [1.0, 2.0]]},
    {"metrics": {}},
    {"scores": [["x", None]] * 2},
  ],
  ids=str,
)
def test_scores_that_do_not_fit_are_named(harm, finished, tmp_path, monkeypatch, capsys):
  run = shutil.copytree(finished, tmp_path / "run")
  (run / "scores.json").write_text(json.dumps(scores(finished) | harm))
  code, line = tiny.run_program(report, [run, "--output", tmp_path / "r"], monkeypatch, capsys)
  assert (code, f"{run}/scores.json: its tasks, scores and metrics do not fit" in line) == (2, True)


def test_a_log_with_what_is_no_number_makes_a_page_all_the_same(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  with (run / "metrics.jsonl").open("a") as out:
    out.write('{"task": {"a": 1}, "loss": 1}\n{"task": "t", "step": 1, "loss": NaN}\n')
  report.main([str(run), "--output", str(tmp_path / "r")])
  assert "NaN" not in json.dumps(data_of((tmp_path / "r/index.html").read_text()))


def test_a_log_that_is_not_as_it_was_written_is_named(finished, tmp_path, capsys):
  run = shutil.copytree(finished, tmp_path / "run")
  report.main([str(run), "--output", str(tmp_path / "whole")])
  assert "warning" not in capsys.readouterr().err
  content = (run / "metrics.jsonl").read_text()
  for harmed in ("", content.replace('"loss"', '"lost"', 1)):
    (run / "metrics.jsonl").write_text(harmed)
    report.main([str(run), "--output", str(tmp_path / "harmed")])
    complaint = capsys.readouterr().err
    assert f"warning: {run}/metrics.jsonl: changed since it was written" in complaint


def test_a_name_with_dollars_is_no_formula_and_an_output_must_be_possible(
  finished, tmp_path, monkeypatch, capsys
):
  run = shutil.copytree(finished, tmp_path / r"a$\frac$")
  result = scores(run)
  (run / "scores.json").write_text(json.dumps(result | {"tasks": ["a$_{$b", "c"]}))
  report.main([str(run), "--output", str(tmp_path / "r")])
  code, line = tiny.run_program(report, [run, "--output", "/dev/null/x"], monkeypatch, capsys)
  assert (code, "--output /dev/null/x: cannot be made (Not a directory)" in line) == (2, True)


def test_each_table_is_there_as_csv_and_latex_and_each_picture_as_png(place):
  assert (place / "losses_run.csv").read_text().startswith("task,phase,step,loss\n")
  for name in ("figures", "pairs", "options", "scores_run", "cost_run"):
    rows = (place / f"{name}.csv").read_text().splitlines()
    text = (place / f"{name}.tex").read_text()
    assert text.count(r" \\") == len(rows)
  assert r"x</script><b>y \& z\_1 & 1 & 99.0" in (place / "figures.tex").read_text()
  pictures = {path.name for path in place.glob("*.png")}
  assert pictures >= {"average_so_far.png", "final_scores.png", "scores_run.png"}
  assert pictures >= {"mixture_learning_other.png", "mixture_answering_other.png"}


def test_runs_are_told_apart_by_as_many_folders_as_it_takes(tmp_path):
  folders = [tmp_path / x for x in ("a/x/run", "b/x/run", "a/y/run", "one")]
  assert names_of(folders) == ["a-x-run", "b-x-run", "y-run", "one"]
  with pytest.raises(InputError, match="one: stands there twice"):
    names_of([*folders, tmp_path / "a/../one"])


def test_names_stay_as_they_are_in_tables():
  rows = [["a|b", "*star*"], ["x^2", "**+1.0 to +2.0**"]]
  text = report.latex(rows)
  assert r"a|b & *star* \\" in text
  assert r"x\textasciicircum{}2 & \textbf{+1.0 to +2.0} \\" in text
  assert report.markdown(rows).startswith(r"| a\|b | *star* |")


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("tasks", None, "do not fit"),
    ("metrics", {"AP": 1.0, "F.Ra": 0.0, "BWT": 0.0}, "do not fit"),
    ("seed", "0", "seed: not what a run writes"),
    ("wall_s", None, "wall_s: not what a run writes"),
    ("rows", 3, "rows: not what a run writes"),
  ],
)
def test_scores_that_no_run_writes_are_named(finished, tmp_path, key, value, words):
  changed = scores(finished) | {key: value}
  (tmp_path / "scores.json").write_text(json.dumps(changed))
  with pytest.raises(InputError, match=f"scores.json: .*{words}"):
    read_scores(tmp_path)


def test_a_run_that_is_still_learning_is_reported_as_far_as_it_is(
  finished, tmp_path, monkeypatch, capsys
):
  half = killed_after(finished, 5, tmp_path)
  report.main([str(half), str(finished), "--output", str(tmp_path / "report")])
  table = capsys.readouterr().out
  assert "1 of 2 tasks learned" in table
  assert " less " not in table  # an AP of one task and one of two cannot be subtracted
  assert " steps" not in table  # that one has not taken the other's yet is no difference
  data = data_of((tmp_path / "report/index.html").read_text())
  run = data["runs"][0]
  assert (run["learned"], len(run["tasks"]), len(run["scores"])) == (1, 2, 1)
  report.main([str(half), "--output", str(tmp_path / "alone")])
  said = capsys.readouterr().out
  assert "1 of 2 tasks learned" in said
  assert said.endswith(f"{tmp_path / 'alone/index.html'}\n")
  nothing = killed_after(finished, 1, tmp_path / "nothing")
  given = [nothing, "--output", tmp_path / "no"]
  code, complaint = tiny.run_program(report, given, monkeypatch, capsys)
  assert (code, "has learned no task yet" in complaint) == (2, True)
  given = [finished, finished, "--output", tmp_path / "no"]
  code, complaint = tiny.run_program(report, given, monkeypatch, capsys)
  assert (code, "stands there twice" in complaint) == (2, True)
  code, complaint = tiny.run_program(report, [half, "--output", half], monkeypatch, capsys)
  assert (code, "is the folder of a run" in complaint) == (2, True)


def test_runs_of_one_method_are_told_apart_by_their_steps(finished, tmp_path, capsys):
  shorter = shutil.copytree(finished, tmp_path / "shorter")
  steps = [1, *scores(finished)["steps"][1:]]
  (shorter / "scores.json").write_text(json.dumps(scores(shorter) | {"steps": steps}))
  report.main([str(shorter), str(finished), "--output", str(tmp_path / "report")])
  table = capsys.readouterr().out
  assert f", {steps[0]}+{steps[1]} steps | 1 |" in table
  assert f", {scores(finished)['steps'][0]} steps a task | 1 |" in table


def test_a_finished_run_that_learns_one_task_more_is_reported_with_it(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  values = json.loads((run / "config.json").read_text())
  values["tasks"]["one_more"] = next(iter(values["tasks"].values()))
  (run / "config.json").write_text(json.dumps(values))
  scores = read_scores(run)
  assert (scores["learned"], scores["tasks"][-1]) == (2, "one_more")
  assert [len(row) for row in scores["scores"]] == [3, 3]


def test_in_a_browser_it_is_drawn_sorts_and_tells_and_asks_for_nothing(place):
  with browser() as page:
    page.size(1200, 2000)
    page.open(f"file://{place / 'index.html'}")
    first = "document.querySelector('#figures tbody tr td').textContent"
    assert page.see(first) == "x</script><b>y & z_1"
    page.see("document.querySelectorAll('#figures th button')[2].click()")  # most AP first
    assert page.see(first) == "x</script><b>y & z_1"
    page.see("document.querySelectorAll('#figures th button')[2].click()")
    assert page.see(first).startswith("sapt")
    assert page.see("document.querySelectorAll('#scores rect').length") == 3
    assert page.see("document.querySelectorAll('#mixtures svg').length") == 2
    # Weights that are no shares (method.sharing) have colours of their own below 0 and above 1.
    drawn = "heatmap('', [[1, null], [-.25, 1.25]], ['a', 'b'], 1, .005, 2)"
    cells = f"[...{drawn}.querySelectorAll('rect')].map(x => x.getAttribute('fill'))"
    assert page.see(f"new Set({cells}).size") == 3
    assert page.see(f"{cells}[2]") == page.see("heat(1)")
    assert page.see("document.querySelectorAll('#curves polyline').length") == 2
    assert page.see("document.querySelectorAll('#loss svg').length") >= 2
    cell = "document.querySelector('#scores rect')"
    page.see(f"{cell}.dispatchEvent(new PointerEvent('pointerenter'))")
    assert "→" in page.see("document.getElementById('tip').textContent")
    assert page.see("getComputedStyle(document.getElementById('tip')).display") == "block"
    page.see("document.getElementById('run').value = 1, document.getElementById('run').onchange()")
    assert page.see("document.querySelectorAll('#scores rect').length") == 3
    assert page.complaints == []
    assert page.asked == [f"file://{place / 'index.html'}"]
