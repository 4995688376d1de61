"""Runs whose folder is elsewhere: on an S3 store that the test starts, and at a file:// URL."""

import json
import shutil

import fsspec
import numpy as np
import pytest
import tiny

from sapt_jax import predict, report, train
from sapt_jax.errors import InputError
from sapt_jax.remote import Mirror, readable, scratch
from sapt_jax.run_log import RunLog
from sapt_jax.snapshots import newest_sound
from sapt_jax.text_files import remove
from sapt_jax.training import checkpoint
from tests.runs import assert_same_run, rows_of, snapshots


@pytest.fixture(scope="module")
def s3():
  """The URL of a bucket on a store of its own, on loopback."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer(port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "someone")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
  server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["s3", "file"])
def place(request, tmp_path):
  """An empty remote folder."""
  if request.param == "file":
    return f"file://{tmp_path}/store"
  return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def machine(url, tmp_path, number):
  """The mirror of another machine, which has a disk of its own."""
  return Mirror(url, tmp_path / f"machine{number}")


def content(folder):
  files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
  return {name: path.read_bytes() for name, path in files.items() if not name.endswith("lock")}


def write(folder, **files):
  for name, text in files.items():
    file = folder / name.replace("__", "/").replace("_", ".")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_what_is_pushed_is_what_another_machine_fetches_and_what_is_gone_goes(place, tmp_path):
  one, two = (machine(place, tmp_path, number) for number in range(2))
  one.local.mkdir()
  one.take()
  write(one.local, config_json="1", s__a__manifest_json="m", s__a__x_bin="x", lock="me")
  write(one.local, s__b_draft__x="half", s__padlock__x="of a task")
  one.push()
  two.fetch()
  assert content(two.local).keys() == {
    "config.json",
    "s/a/manifest.json",
    "s/a/x.bin",
    "s/padlock/x",
  }
  write(one.local, s__a__x_bin="longer", s__a__manifest_json="n")
  (one.local / "config.json").unlink()
  shutil.rmtree(one.local / "s/padlock")
  one.push()
  two.fetch()
  assert content(two.local) == {"s/a/manifest.json": b"n", "s/a/x.bin": b"longer"}


def test_a_manifest_never_stands_beside_other_files_than_its_own(place, tmp_path, monkeypatch):
  """After none of its operations, so that a copy may be killed between any two."""
  mirror = machine(place, tmp_path, 0)
  mirror.local.mkdir()
  mirror.take()
  write(mirror.local, s__a__manifest_json="old", s__a__x="old", s__a__y="old")
  mirror.push()
  write(mirror.local, s__a__manifest_json="newer", s__a__x="newer", s__a__z="newer")
  (mirror.local / "s/a/y").unlink()
  states = []

  def watched(operation):
    def call(*given, **more):
      done = operation(*given, **more)
      names = mirror._remote_files()
      states.append({name: mirror.store.cat_file(f"{mirror.root}/{name}") for name in names})
      return done

    return call

  for name in ("put_file", "rm_file"):
    monkeypatch.setattr(mirror.store, name, watched(getattr(mirror.store, name)))
  mirror.push()
  assert len(states) >= 5
  for state in states:
    assert "s/a/manifest.json" not in state or set(state.values()) == {b"newer"}
  assert states[-1].keys() == {"s/a/manifest.json", "s/a/x", "s/a/z"}


def test_a_copy_that_is_killed_while_it_prunes_leaves_a_snapshot_to_go_on_from(
  place, tmp_path, monkeypatch
):
  mirror, tree = machine(place, tmp_path, 0), {"x": np.arange(3.0, dtype=np.float32)}
  first, second = (mirror.local / "snapshots" / name for name in ("00_a", "01_b"))
  checkpoint.save(first, tree, {"step": 1})
  checkpoint.save(mirror.local / "progress/01/learn", tree, {"step": 2}, in_one_file=True)
  mirror.take()
  mirror.push()
  checkpoint.save(second, tree, {"step": 3})
  checkpoint.prune(first)
  shutil.rmtree(mirror.local / "progress")
  learned = []

  def watched(operation):
    def call(*given, **more):
      operation(*given, **more)
      there = machine(place, tmp_path, f"left{len(learned)}")
      there.fetch()
      learned.append(newest_sound([there.local / "snapshots" / name for name in ("00_a", "01_b")]))
      kept = checkpoint.is_finished(there.local / "progress/01/learn")
      assert kept or learned[-1] == 2

    return call

  for name in ("put_file", "rm_file"):
    monkeypatch.setattr(mirror.store, name, watched(getattr(mirror.store, name)))
  mirror.push()
  assert learned == sorted(learned)
  assert set(learned) == {1, 2}
  two = machine(place, tmp_path, 1)
  two.fetch()
  assert content(two.local) == content(mirror.local)


def test_the_older_of_two_runs_in_one_place_ends(place, tmp_path):
  one, two = (machine(place, tmp_path, number) for number in range(2))
  for mirror in (one, two):
    mirror.local.mkdir()
    mirror.take()
  assert one.owner() == two.owner() == two.token
  with pytest.raises(InputError, match=r"process \d+ \w+ has gone on with this run; this one ends"):
    one.push()
  two.push()


def test_a_run_goes_on_on_another_machine_and_can_be_asked_from_anywhere(
  world, finished, place, tmp_path, monkeypatch
):
  """It is killed in its second task, and its machine is lost with it."""
  first = machine(place, tmp_path, 0)
  shutil.copytree(finished.parent / "killed/7", first.local)
  first.take()
  first.push()
  arguments = [*world, "--output", place]
  train.main(arguments)
  local = scratch(place, "runs")
  assert_same_run(local, finished)
  shutil.rmtree(tmp_path / "cache")
  fetched = readable(place)
  assert fetched != local
  assert_same_run(fetched, finished)
  assert not list(fetched.glob("progress/*/*"))
  (tmp_path / "in.jsonl").write_text(json.dumps({"input": "thing 1 is red"}) + "\n")
  predict.main(
    ["--run", place, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o")]
  )
  assert len(rows_of(tmp_path / "o")) == 1
  report.main([place, "--output", str(tmp_path / "report")])
  train.main([*arguments, "--from-task", "2"])
  assert len(snapshots(scratch(place, "runs"))) == 2


def test_what_a_run_prunes_goes_at_its_url_too(world, finished, tmp_path):
  place = f"file://{tmp_path}/store"
  train.main([*world, "--output", place, "--keep-snapshots", "1"])
  fetched = readable(place)
  assert_same_run(fetched, finished)
  assert [checkpoint.has_arrays(snapshot) for snapshot in snapshots(fetched)] == [False, True]
  assert not list(fetched.glob(f"snapshots/00_*/{checkpoint.TREE}"))


@pytest.mark.parametrize("lost", ["", "snapshots/00_task001_colour", "config.json"])
def test_what_is_removed_here_while_a_run_is_at_work_stays_there(
  world, finished, tmp_path, monkeypatch, capsys, lost
):
  """As caches are cleaned: all of the local folder, or what is old in it."""
  place = f"file://{tmp_path}/store"
  first = machine(place, tmp_path, 0)
  shutil.copytree(finished.parent / "killed/5", first.local)
  first.take()
  first.push()
  arguments = [*world, "--output", place]

  def add(log, row, original=RunLog.add):
    original(log, row)
    if (row["index"], row.get("step")) == (1, 5):
      remove(scratch(place, "runs") / lost)

  with monkeypatch.context() as patch:
    patch.setattr(RunLog, "add", add)
    code, line = tiny.run_program(train, arguments, patch, capsys)
  assert (code, "was removed while the run was at work" in line) == (1, True), line
  assert "give the same command again" in line
  train.main(arguments)
  assert "going on with task 2 of 2, task002_count" in capsys.readouterr().out
  assert_same_run(scratch(place, "runs"), finished)


@pytest.mark.parametrize(
  ("url", "said"),
  [
    ("nowhere://bucket/run", "Protocol not known: nowhere"),
    ("s3://no-such-bucket-here/run", "cannot be reached"),
    ("gs://bucket/run", "install"),
  ],
)
def test_a_place_that_cannot_be_reached_is_named(
  url, said, world, s3, tmp_path, monkeypatch, capsys
):
  code, complaint = tiny.run_program(train, [*world, "--output", url], monkeypatch, capsys)
  assert (code, url in complaint, said in complaint) == (2, True, True), complaint
