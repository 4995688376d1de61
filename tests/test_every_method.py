"""What holds of every method: its options, its runs, what it keeps and what it leaves alone."""

import dataclasses
import json
import re

import pytest
import tiny

from sapt_jax import config, methods, run_options, saved_options, train
from sapt_jax.errors import InputError
from sapt_jax.methods import METHODS
from sapt_jax.pet import blocks
from sapt_jax.run_folder import RunFolder
from sapt_jax.training import checkpoint
from tests.classroom import build, same
from tests.runs import (
  Loop,
  assert_same_run,
  killed_after_each_save,
  scores,
  snapshots,
)

EACH = pytest.mark.parametrize("name", METHODS)
OPTIONS = (
  "--data.benchmark superni --data.protocol published --data.max-source-length 128 "
  "--data.max-target-length 4 --fit.steps 2 --fit.batch-size 4 --fit.checkpoint-every 1 "
  "--fit.log-every 1 --evaluation.batch-size 8 --pet.rank 2 --pet.prompt-length 2 "
  "--generator.max-length 48 --generator.oversample 1"
).split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Options of a short run on a decoder-only model, with pseudo inputs to be read."""
  root = tmp_path_factory.mktemp("world")
  model = tiny.model_folder(root / "llama", tiny.LLAMA)
  tiny.benchmark_folder(root / "data", tiny.TASKS)
  for number, name in enumerate(tiny.TASKS):
    rows = [{"definition": "Say it.", "input": text} for text in ("one", "two")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / f"{number:02d}_{name}.jsonl").write_text(text)
  places = {"backbone.path": model, "data.root": root / "data", "generator.folder": root}
  return [*OPTIONS, *(str(x) for name, place in places.items() for x in (f"--{name}", place))]


@pytest.fixture(scope="module", params=METHODS)
def ran(request, world, tmp_path_factory):
  """A method's loop, its finished run, and the folder that it would have left if it had been killed
  inside the second task.
  """
  folder, kind = tmp_path_factory.mktemp(request.param), METHODS[request.param].kinds[0]
  loop = Loop([*world, "--method.name", request.param, "--pet.kind", kind])
  with killed_after_each_save(folder / "whole", folder / "killed"):
    loop.run(folder / "whole")
  killed = [place for place in folder.glob("killed/*") if (place / "progress/01").is_dir()]
  return loop, folder / "whole", min(killed)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been_bit_for_bit(ran):
  loop, whole, killed = ran
  assert len(snapshots(killed)) == 1
  loop.run(killed)
  assert_same_run(killed, whole)


def test_a_method_keeps_nothing_outside_the_tree_that_is_saved(ran):
  loop, _, _ = ran
  method = loop.loop.method
  assert vars(method) == vars(methods.build(loop.config.method, method.setting))


def test_a_task_leaves_the_blocks_of_earlier_tasks_as_they_are(ran):
  loop, whole, _ = ran
  start = loop.loop.built.start(0)
  pools = [checkpoint.load(snapshot, start)[0].blocks for snapshot in snapshots(whole)]
  first = [blocks.read(pool, 0) for pool in pools]
  assert same(*first) or not loop.loop.method.block_per_task
  assert not same(*pools)


def test_steps_are_those_asked_for_and_scores_those_there_can_be(ran):
  loop, whole, _ = ran
  result, waits = scores(whole), loop.config.method.name == "multi_task"  # until the last task
  assert result["steps"] == ([0, 4] if waits else [2, 2])
  assert result["metrics"]["AP"] is not None
  assert (result["metrics"]["F.Ra"] is None) == waits


def other_options(kind):
  """The class's options, each as another value than its default where one is known that fits."""
  values = {}
  for field in dataclasses.fields(kind):
    if field.name == "name":
      continue
    if isinstance(field.default, bool):
      values[field.name] = not field.default
    elif isinstance(field.default, float):
      values[field.name] = field.default / 2
    elif field.default is None or isinstance(field.default, int):
      values[field.name] = 0.5 if field.default is None else field.default + 1
  return kind(**values)


@EACH
def test_options_come_back_from_the_file_that_a_run_writes(name):
  method = other_options(METHODS[name].Options)
  assert method != METHODS[name].Options() or len(dataclasses.fields(method)) == 1
  options = config.Config(method=method, fit=config.Fit(steps=3))
  written = json.loads(json.dumps(dataclasses.asdict(options)))
  assert saved_options.config_from_json(written) == options


@EACH
def test_a_method_goes_by_the_name_of_its_options(name):
  kind = METHODS[name]
  assert kind.Options().name == name
  assert build(name, kind=kind.kinds[0]).label.startswith(name)
  assert kind.Options.__doc__.strip()


def test_an_option_of_another_method_is_refused_with_those_that_have_it(monkeypatch, capsys):
  arguments = ["--method.name", "replay", "--method.reflection-weight", "1"]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  assert code == 2
  assert complaint == (
    "error: --method.reflection-weight: not an option of method replay; sapt has it\n"
  )
  arguments[-2] = "--method.kept-energy"
  _, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  assert complaint.endswith("not an option of method replay; inflora, gainlora have it\n")


@pytest.mark.parametrize("name", ["l2p", "sapt"])
def test_help_shows_the_options_of_the_method_chosen_and_of_no_other(name, capsys):
  with pytest.raises(SystemExit) as stop:
    train.main(["--method.name", name, "--help"])
  assert stop.value.code == 0
  shown = set(re.findall(r"--method\.(?:no-)?([\w-]+)", capsys.readouterr().out))
  assert shown == {
    field.replace("_", "-") for field in run_options.fields_of(METHODS[name].Options)
  }


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    (name, kind)
    for name in METHODS
    for kind in ("lora", "prompt")
    if kind not in METHODS[name].kinds
  ],
)
def test_a_kind_of_block_that_a_method_cannot_use_is_refused(name, kind):
  with pytest.raises(InputError, match=rf"{name}: cannot use pet.kind {kind}"):
    build(name, kind=kind)


def test_some_methods_cannot_use_each_kind_of_block():
  kinds = {name: METHODS[name].kinds for name in METHODS}
  assert [kinds[name] for name in ("o_lora", "n_lora", "inflora")] == [("lora",)] * 3
  assert kinds["l2p"] == kinds["prog_prompt"] == ("prompt",)


def test_a_run_that_an_older_version_began_is_read_and_not_gone_on_with(tmp_path):
  old = {
    "method": {"name": "l2p", "new_block": "directions", "pool_prompts": 7, "replay_share": 0.02},
    "pet": {"kind": "prompt"},
    "fit": {"attention_learning_rate": 1e-4},
    "backbone.weights": "same",
  }
  read = saved_options.config_from_json(old)
  assert (read.method.pool_prompts, read.method.feature) == (7, "embeddings")
  assert (read.method.key_learning_rate, read.pet.new_block) == (1e-4, "directions")
  (tmp_path / "config.json").write_text(json.dumps(old))
  done = tmp_path / "snapshots" / "00_task"
  done.mkdir(parents=True)
  (done / "manifest.json").write_text("{}")
  with (
    pytest.raises(InputError, match="older version of the library, which computed other numbers"),
    RunFolder(tmp_path, read, {}),
  ):
    pass


@pytest.mark.parametrize("values", [[], {}, {"method": {"name": "epi"}, "pet": 5, "fit": {}}])
def test_a_damaged_configuration_is_one_line(values):
  with pytest.raises(InputError, match="does not hold the options of a run"):
    saved_options.config_from_json(values)


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--method.new-block", "--method.new-block: is --pet.new-block now"),
    ("--fit.attention-learning-rate=1e-4", "is --method.attention-learning-rate"),
    ("--method.poolprompts", "no method has this option; did you mean --method.pool-prompts?"),
    ("--method.no-task-known", "not an option of method l2p; prog_prompt has it"),
  ],
)
def test_options_that_moved_or_belong_elsewhere_say_where_to(option, message):
  with pytest.raises(InputError, match=re.escape(message)):
    run_options.check_method_options(METHODS["l2p"].Options(), [option, "fresh"])


@pytest.mark.parametrize(
  ("name", "option"),
  [
    ("sapt", "attention_learning_rate"),
    ("mocl", "key_learning_rate"),
    ("l2p", "key_learning_rate"),
    ("gainlora", "gate_learning_rate"),
  ],
)
def test_a_method_s_other_parts_have_a_rate_of_their_own(name, option):
  kind = METHODS[name]
  own, shared = (kind(kind.Options(**given), None) for given in ({option: 0.25}, {}))
  [other] = set(own.rates(0.5)) - {"block"}
  assert (own.rates(0.5)["block"], own.rates(0.5)[other]) == (0.5, 0.25)
  assert set(shared.rates(0.5).values()) == {0.5}
