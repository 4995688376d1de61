"""The tour of notebooks/ runs from its first cell to its last."""

import json
from pathlib import Path

import pytest

TOUR = Path(__file__).parent.parent / "notebooks/tour.ipynb"
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
# Fewer steps than a reader's: what the text promises holds after any number.
FEWER = {"steps=30": "steps=10", "steps=40": "steps=10"}
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_tour_is_kept_without_what_a_run_of_it_prints():
  code = [cell for cell in CELLS if cell["cell_type"] == "code"]
  assert code
  assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_tour_says_what_happens(tmp_path, monkeypatch, capsys):
  pyplot = pytest.importorskip("matplotlib.pyplot")
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  names: dict = {}
  assert all("".join(CODE).count(steps) == 1 for steps in FEWER)
  for number, cell in enumerate(CODE):
    for steps, fewer in FEWER.items():
      cell = cell.replace(steps, fewer)
    exec(compile(cell, f"cell {number}", "exec"), names)
  assert len(pyplot.get_fignums()) == 2
  pyplot.close("all")
  assert [len(row) for row in names["result"]["scores"]] == [3, 3, 3]
  # Each task finds its own block, also the one that came behind the others.
  for task, answers in names["after"].items():
    assert all(max(answer.mixture, key=answer.mixture.get) == task for answer in answers)
  # "What has been learned stays."
  for task in ("film_mood", "parcel_town"):
    earlier, later = ([answer.text for answer in names[when][task]] for when in ("before", "after"))
    assert earlier == later
  assert (names["adapter"] / "adapter_config.json").is_file()
  assert names["pool"].tasks == ("film_mood", "headline_section")
  assert "8 of 8 answers are as before" in capsys.readouterr().out
