"""Reading tasks, cutting prompts, making batches."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
import tiny
from padding import looked_up, padding, passes

from sapt_jax import config
from sapt_jax.data.batches import Batcher, Row, bucket
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.prompts import Codec, load_tokenizer
from sapt_jax.data.shapes import choose_shapes, places
from sapt_jax.data.sources import load_stream
from sapt_jax.errors import InputError


@pytest.fixture
def root(tmp_path):
  return tiny.benchmark_folder(tmp_path, tiny.TASKS)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
  tokenizer = load_tokenizer(tiny.model_folder(tmp_path_factory.mktemp("t5"), tiny.T5))
  frame = BENCHMARKS["superni"].frame
  return Codec(tokenizer, frame, max_source=120, max_target=6, eos_id=1)


def stream(root, **options):
  data = config.Data(benchmark="superni", root=str(root), **options)
  return load_stream(data, config.Stream(), seed=0)


def test_published_protocol_takes_the_files_as_they_are(root):
  task = stream(root, protocol="published")[0]
  assert (len(task.train), task.dev, task.definition) == (12, task.test[:4], "Name the colour.")


def test_clean_protocol_carves_dev_out_of_train(root):
  published, clean = stream(root, protocol="published")[0], stream(root, protocol="clean")[0]
  assert set(clean.dev) | set(clean.train) == set(published.train)
  assert not set(clean.dev) & set(clean.train)
  assert clean.test == published.test


def test_order_comes_from_the_configuration_and_names_may_be_cut(root):
  options = config.Data(benchmark="superni", root=str(root))
  tasks = load_stream(options, config.Stream(("task002", "task001")), seed=0)
  assert [task.name for task in tasks] == ["task002_count", "task001_colour"]
  with pytest.raises(InputError, match=r"'task00' is ambiguous: task001_colour, task002_count"):
    load_stream(options, config.Stream(("task00",)), seed=0)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"Definition": "d", "Instances": []}', r"train\.json: field 'Instances' is empty"),
    (
      b'{"Definition": "d", "Instances": [{"input": "a", "output": "b"}, {"output": "b"}]}',
      r"train\.json: Instances\[1\]: field 'input'",
    ),
    (
      b'{"Definition": "d", "Instances": [{"input": 3, "output": "b"}]}',
      r"Instances\[0\]: field 'input' must be text, not int",
    ),
    (
      b'{"Definition": "d", "Instances": [{"input": "a", "output": []}]}',
      r"Instances\[0\]: field 'output' must be text or a list",
    ),
    (
      b'{"Definition": 3, "Instances": [{"input": "a", "output": "b"}]}',
      r"train\.json: field 'Definition' must be text",
    ),
    (
      b'{"Instances": [{"input": "a", "output": "b"}]}',
      r"train\.json: field 'Definition' is missing",
    ),
    (b'{"Definition": "d",\n"Instances": [}', r"train\.json:2: not JSON"),
    (
      b'{"Definition": "d",\n"Instances": [{"input": "\xe9", "output": "b"}]}',
      r"train\.json:2: not UTF-8 \(byte 0xe9\)",
    ),
    (b"[]", r"train\.json: must hold an object"),
  ],
)
def test_wrong_data_is_named_with_file_place_and_field(root, content, message):
  (root / "SuperNI" / "task001_colour" / "train.json").write_bytes(content)
  with pytest.raises(InputError, match=message):
    stream(root)


def test_a_byte_order_mark_is_no_error(root):
  file = root / "SuperNI" / "task001_colour" / "train.json"
  file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  assert len(stream(root, protocol="published")[0].train) == 12


def test_missing_file_and_folder_are_named(root):
  (root / "SuperNI" / "task002_count" / "dev.json").unlink()
  assert len(stream(root)) == 2  # dev is carved out of train
  with pytest.raises(InputError, match=r"task002_count/dev\.json: no such file"):
    stream(root, protocol="published")
  with pytest.raises(InputError, match="is not a folder"):
    stream(root / "elsewhere")
  (root / "empty/SuperNI").mkdir(parents=True)
  with pytest.raises(InputError, match="holds no task folder"):
    stream(root / "empty")


def test_folders_that_other_programs_leave_are_no_tasks(root):
  for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
    (root / "SuperNI" / name).mkdir()
  assert [task.name for task in stream(root)] == ["task001_colour", "task002_count"]


def test_long_inputs_are_cut_and_the_frame_survives(codec):
  before, after = (part.replace("{d}", "Do it.") for part in codec.frame)
  text = "words without end " * 40
  ids = codec.source("Do it.", text)
  whole = codec.tokenizer.decode(ids, skip_special_tokens=True)
  assert len(ids) == codec.max_source
  assert whole.startswith(before)
  assert whole.endswith(after)
  assert text.startswith(whole[len(before) : -len(after)])


def test_short_inputs_are_left_whole(codec):
  ids = codec.source("Do it.", "é 漢")
  written = codec.tokenizer.decode(ids, skip_special_tokens=True)
  assert written == codec.prompt("Do it.", "é 漢")


def test_a_task_without_a_definition_has_prompts_without_its_line(tmp_path, codec):
  tiny.benchmark_folder(tmp_path, {"task001_bare": ("", [("ja", "yes"), ("nein", "no")])})
  for file in (tmp_path / "SuperNI/task001_bare").glob("*.json"):
    content = json.loads(file.read_text()) | {"Definition": []}  # as Long Sequence's copa
    file.write_text(json.dumps(content))
  [task] = stream(tmp_path, protocol="published")
  assert task.definition == ""
  bare = "Now complete the following example -\nInput: ja\nOutput: "
  assert codec.prompt(task.definition, "ja") == bare
  long_sequence = Codec(codec.tokenizer, BENCHMARKS["long_sequence"].frame, 120, 6, 1)
  assert long_sequence.prompt("", "ja") == "ja\nOutput: "


def test_a_frame_that_is_too_long_is_an_error(codec):
  with pytest.raises(InputError, match="the frame alone takes"):
    codec.source("Do it. " * 30, "input")


def test_answers_end_and_come_back(codec):
  assert codec.text(codec.target("red")) == "red"
  assert codec.target("much too long")[-1] == codec.eos_id
  assert len(codec.target("much too long")) == codec.max_target


ROWS = [Row(list(range(2, 3 + i % 20)), [5, 1], 0) for i in range(37)]


def rows_of(batches):
  rows = [row for batch in batches for row in zip(batch.source, batch.source_mask, strict=True)]
  return sorted(tuple(ids[mask]) for ids, mask in rows)


def test_every_row_is_seen_in_every_pass():
  batcher = Batcher(left=False, pad_id=0, size=8, seed=3)
  seen = rows_of(batcher.training(ROWS, 5, 10))  # the second pass
  assert len(seen) == 40
  assert set(seen) == {tuple(row.source) for row in ROWS}


def test_a_batch_depends_on_its_step_and_the_seed_alone():
  batcher = Batcher(left=False, pad_id=0, size=8, seed=3)
  other_seed = Batcher(left=False, pad_id=0, size=8, seed=4)

  def sources(batcher, start):
    return [batch.source for batch in batcher.training(ROWS, start, 12)]

  through = sources(batcher, 0)
  assert all(map(np.array_equal, through[7:], sources(batcher, 7)))
  assert not all(map(np.array_equal, through, sources(other_seed, 0)))


def test_a_length_from_64_to_1024_is_padded_by_less_than_a_quarter():
  for length in range(64, 1025):
    assert 0 <= bucket(length) - length < length / 4


@pytest.mark.parametrize("left", [False, True])
def test_padding_stands_on_its_side_and_masks_say_so(left):
  rows = [Row([7, 8, 9], [5, 1], 0), Row([6], [4, 3, 1], 1)]
  batch = Batcher(left, pad_id=0, size=2).collate(rows)
  assert batch.source.shape[1] == bucket(3)
  assert batch.source[1][batch.source_mask[1]].tolist() == [6]
  assert bool(batch.source_mask[1, -1 if left else 0])
  assert batch.target[0, :3].tolist() == [5, 1, 0]
  assert batch.task.tolist() == [0, 1]


def test_joined_rows_have_room_for_source_and_answer_and_keep_them():
  lengths = (40, 1), (1, 40), (30, 12), (400, 300)
  rows = [Row(list(range(2, 2 + n)), [3] * (answer - 1) + [1], 0) for n, answer in lengths]
  for part in (rows[:1], rows[1:2], rows[:3], rows):
    batch = Batcher(left=True, pad_id=0, size=4).collate(part, joined=True)
    both = max(len(row.source) + len(row.target) - 1 for row in part)
    assert both <= batch.source.shape[1] < both + 16
    assert max(len(row.target) for row in part) <= batch.target.shape[1] <= batch.source.shape[1]
    arrays = jax.tree.leaves(batch)[:4]
    for row, source, source_mask, target, target_mask in zip(part, *arrays, strict=True):
      assert source[source_mask].tolist() == row.source
      assert bool(source_mask[-1])
      assert target[target_mask].tolist() == row.target


def test_passes_are_counted_that_refilling_and_guessing_would_save():
  """Three answers of 1, 4 and 2 tokens behind the first, in batches of two rows."""
  rows = [Row([9] * n, list(target), 0) for n, target in ((1, b"ab"), (2, b"abcde"), (3, b"abc"))]
  batcher = Batcher(True, 0, 2)
  assert passes(batcher, rows).tolist() == [4 + 2, 4, 4 + 2]
  copied = [Row(list(b"xyzabcdefg"), list(b"abcdefgh"), 0), Row(list(b"hij"), list(b"ijij"), 0)]
  # bcde is guessed and f written, then g guessed and h written; j and i, and j written.
  assert [looked_up(row) for row in copied] == [2, 1]
  assert looked_up(Row(list(b"xyz"), list(b"abc"), 0)) == 2
  assert looked_up(Row(list(b"xyz"), list(b"a"), 0)) == 0


def test_joined_rows_and_longer_windows_leave_less_padding():
  rng = np.random.default_rng(0)
  rows = [Row([2] * rng.integers(100, 300), [3] * rng.integers(1, 30), 0) for _ in range(512)]
  forms = (False, 8), (True, 8), (True, 32)
  batchers = [Batcher(left, pad_id=0, size=8, window=window) for left, window in forms]
  counted = [padding(batcher, rows) for batcher in batchers]
  apart, together, sorted_further = (real / places for real, places, _ in counted)
  assert apart < 0.9 < together < sorted_further
  assert sorted_further > 0.95


@pytest.mark.parametrize("left", [False, True])
def test_batches_are_padded_to_few_shapes_of_their_own_lengths(left):
  """Hundreds of lengths, most of them in two heaps: few shapes lose little."""
  rng = np.random.default_rng(0)
  sources = [*rng.integers(50, 60, 300), *rng.integers(180, 200, 300), *rng.integers(1, 400, 40)]
  rows = [Row([2] * int(n), [3] * int(rng.integers(1, 20)), 0) for n in sources]
  batcher = Batcher(left, pad_id=0, size=8)
  shapes = choose_shapes(batcher.needs(rows), 4, left)
  few = dataclasses.replace(batcher, shapes=shapes)
  _, places, used = padding(few, rows, 3)
  assert {(shape[1], shape[3]) for shape in used} <= {*shapes}
  assert len(shapes) == 4
  _, fixed_places, fixed = padding(batcher, rows, 3)
  assert len(fixed) > 2 * len(used)
  assert places < 1.1 * fixed_places
  same = zip(few.training(rows, 0, 9), batcher.training(rows, 0, 9), strict=True)
  for one, other in same:  # nothing but the padding differs
    assert one.source[one.source_mask].tolist() == other.source[other.source_mask].tolist()
    assert one.target[one.target_mask].tolist() == other.target[other.target_mask].tolist()


def test_what_is_longer_than_all_shapes_has_a_fixed_one():
  batcher = Batcher(False, pad_id=0, size=2, shapes=((8, 8), (24, 16)))
  assert batcher.padded(5, 8, joined=False) == (8, 8)
  assert batcher.padded(5, 9, joined=False) == (24, 16)
  assert batcher.padded(25, 3, joined=False) == (bucket(25), bucket(3))


def test_the_shapes_that_lose_least_are_chosen():
  needs = [(8, 8)] * 50 + [(9, 8)] * 50 + [(64, 8)] * 50 + [(120, 16)]
  assert choose_shapes(needs, 3, joined=False) == ((16, 8), (64, 8), (120, 16))
  assert choose_shapes(needs, 1, joined=False) == ((120, 16),)
  assert choose_shapes(needs, 99, joined=False) == ((8, 8), (16, 8), (64, 8), (120, 16))
  assert choose_shapes([], 3, joined=False) == ()
  long = [(n, 1) for n in range(1, 9000)]
  assert max(choose_shapes(long, 10, joined=True)) >= (8999, 1)
  # A few long needs, no two alike, do not make the many short ones longer.
  rng = np.random.default_rng(0)
  few = list(map(tuple, rng.integers((64, 4), (4096, 1024), (60, 2)).tolist()))
  assert (64, 8) in choose_shapes([(64, 4)] * 8000 + few, 10, joined=False)


@pytest.mark.parametrize("joined", [False, True])
def test_chosen_shapes_cost_hardly_more_than_the_best_of_all_choices(joined):
  def cost(shapes):
    held = [[one for one in shapes if one[0] >= a and one[1] >= b] for a, b in needs]
    return sum(places(np.array(holding), joined).min() for holding in held)

  rng, excess = np.random.default_rng(0), []
  for _ in range(20):
    needs = list(zip(*(8 * rng.integers(1, most, 20) for most in (9, 4)), strict=True))
    lengths = [sorted(set(of_one)) for of_one in zip(*needs, strict=True)]
    *corners, largest = itertools.product(*lengths)
    best = min(cost([*few, largest]) for few in itertools.combinations(corners, 2))
    excess.append(cost(choose_shapes(needs, 3, joined)) / best - 1)
  assert max(excess) < 0.02
  assert np.mean(excess) < 0.001


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_answering_goes_over_every_row_once(count):
  batcher = Batcher(left=False, pad_id=0, size=8)
  parts = list(batcher.answering(ROWS[:count]))
  assert sorted(np.concatenate([numbers for numbers, _ in parts])) == list(range(count))
  for numbers, batch in parts:
    assert len(numbers) <= len(batch.source) <= 8
    for number, ids, mask in zip(numbers, batch.source, batch.source_mask, strict=False):
      assert ids[mask].tolist() == ROWS[number].source


def test_real_benchmark_files_are_read_and_lists_of_references_kept(shared):
  folder = shared / "data/CL_Benchmark"
  tasks = stream(folder, protocol="published")
  assert len(tasks) == 15
  for task in tasks:
    published = json.loads((folder / "SuperNI" / task.name / "test.json").read_text())
    for example, row in zip(task.test, published["Instances"], strict=True):
      outputs = row["output"] if isinstance(row["output"], list) else [row["output"]]
      assert list(example.references) == outputs
  assert sum(len(example.references) > 1 for task in tasks for example in task.test) == 40
