"""The library against goldens: those of the authors' code, and more made here on torch modules, of
other shapes and pool sizes.
"""

import copy
import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def parity():
  spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks/parity.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules["parity"] = module  # dataclasses look their own module up
  spec.loader.exec_module(module)
  return module


def failures(rows):
  rows = list(rows)
  assert rows
  return [str(row) for row in rows if not row.ok]


@pytest.mark.slow
def test_every_array_of_every_golden_of_the_public_code(parity, shared):
  goldens = sorted((shared / "goldens").glob("*.npz"))
  assert goldens
  for path in goldens:
    golden = parity.load_golden(path)
    assert failures(parity.compare_all(golden)) == [], path


@pytest.fixture(scope="module")
def golden_files(torch, tmp_path_factory):
  """Goldens with heads * d_kv != d_model and five blocks, and with grouped queries and three;
  without an index.
  """
  from tests import torch_models, torch_sapt

  folder = tmp_path_factory.mktemp("goldens")
  files = {"t5": folder / "t5.npz", "llama": folder / "llama.npz"}
  t5, llama = torch_models.make("t5-v1.1"), torch_models.make("llama-gqa")
  write = torch_sapt.write_golden
  write(files["t5"], t5, tasks=5, eos=1, pad=0, parts=("pad",))
  write(files["llama"], llama, tasks=3, eos=2, pad=3, parts=("eq", "leftpad"))
  return files


@pytest.fixture(scope="module")
def goldens(parity, golden_files):
  return {name: parity.load_golden(path) for name, path in golden_files.items()}


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_every_array_of_goldens_of_other_shapes(parity, goldens, name):
  golden = goldens[name]
  rows = list(parity.compare_all(golden))
  assert failures(rows) == []
  compared = {row.name for row in rows}
  assert compared == {x for x in golden.arrays if "/out/" in x or "/grad/" in x}
  assert any("/grad/" in x for x in compared)


def test_without_padding_the_correct_mode_gives_the_same_outputs(parity, golden_files):
  golden = parity.load_golden(golden_files["llama"], heads=4, quirks=False)
  rows = list(parity.compare_all(golden, forward_only=True))
  assert failures(rows) == []
  assert {row.name for row in rows} == {x for x in golden.arrays if x.startswith("eq/out/")}


def test_the_number_of_heads_is_found_from_the_arrays(parity, goldens, golden_files):
  assert goldens["llama"].model.config.heads == 4
  assert parity.load_golden(golden_files["llama"], heads=2).model.config.key_heads == 1


@pytest.mark.parametrize(
  ("array", "factor", "ok"),
  [
    ("pad/grad/encoder.prompt_key", 4e-5, True),
    ("pad/grad/encoder.prompt_key", 6e-5, False),
    ("pad/out/loss", 0.9e-5, True),
    ("pad/out/loss", 1.1e-5, False),
  ],
)
def test_a_difference_beyond_the_tolerance_is_seen(parity, goldens, array, factor, ok):
  golden = goldens["t5"]
  theirs = golden.arrays[array]
  last = np.arange(theirs.size).reshape(theirs.shape) == theirs.size - 1
  off = theirs + factor * np.max(np.abs(theirs)) * last
  assert parity.compare(golden, array, off).ok is ok
  assert not parity.compare(golden, array, np.full_like(theirs, np.nan)).ok
  assert not parity.compare(golden, array, theirs[..., None]).ok


def test_another_id_is_accepted_only_where_the_choice_was_close(parity, goldens):
  golden = dataclasses.replace(goldens["t5"], arrays=copy.deepcopy(goldens["t5"].arrays))
  ids, margin = (golden.arrays[f"pad/out/generated_{x}"] for x in ("ids", "margin"))
  other = ids.copy()
  other[1, 2] += 1  # the second new token of the second row
  assert not parity.compare(golden, "pad/out/generated_ids", other).ok
  margin[1, 1] = 0.5e-3
  assert parity.compare(golden, "pad/out/generated_ids", other).ok
  margin[1, 1], margin[1, 2] = 2e-3, 0.0
  assert not parity.compare(golden, "pad/out/generated_ids", other).ok
  other[1, 0] += 1  # the start token: nothing was chosen there
  assert not parity.compare(golden, "pad/out/generated_ids", other).ok


def test_the_program_counts_and_tells_by_its_exit_code(
  parity, goldens, golden_files, monkeypatch, capsys, tmp_path
):
  golden, file = goldens["t5"], str(golden_files["t5"])
  compared = [name for name in golden.arrays if "/out/" in name or "/grad/" in name]
  monkeypatch.setattr(parity, "computed", lambda golden, name, forward_only: golden.arrays)
  assert parity.main([file]) == 0
  *rows, last = capsys.readouterr().out.splitlines()
  assert [row.split()[0] for row in rows] == [f"t5/{name}" for name in compared]
  assert all(row.split()[-1] == "ok" for row in rows)
  assert last == f"parity: {len(compared)} arrays, worst rel 0.00e+00"

  wrong = {name: x for name, x in golden.arrays.items() if name != "pad/out/loss"}
  wrong["pad/out/logits"] = wrong["pad/out/logits"] + 1
  monkeypatch.setattr(parity, "computed", lambda golden, name, forward_only: wrong)
  assert parity.main([file]) == 1
  out = capsys.readouterr().out
  # The one that is off, and the one that nothing is known of.
  assert sum(" FAIL" in line for line in out.splitlines()) == 2

  (tmp_path / "x.npz").write_bytes(b"nothing")
  for path in (tmp_path / "absent.npz", tmp_path / "x.npz"):
    assert parity.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err
  with pytest.raises(SystemExit) as stop:
    parity.main([])
  assert stop.value.code == 2
  assert len(capsys.readouterr().err.splitlines()) == 1
