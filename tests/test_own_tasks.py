"""Tasks of the user's own: files in their real formats, hubs, and what is wrong with them."""

import csv
import json

import numpy as np
import pytest

from sapt_jax import config, learner
from sapt_jax.data.inspection import figures_of, words_of
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.sources import load_stream
from sapt_jax.data.tables import read_table
from sapt_jax.data.task_file import read_task_file
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.mini import T5_MINI
from sapt_jax.mini.default import config as mini_config

ROWS = [{"input": f"text {i}, with a comma", "output": ["yes", "no"][i % 2]} for i in range(20)]


def write(file, rows):
  """Rows as a file of the kind that its name ends with."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if file.suffix in (".csv", ".tsv"):
    with file.open("w", newline="", encoding="utf-8") as out:
      table = csv.DictWriter(out, rows[0], delimiter="," if file.suffix == ".csv" else "\t")
      table.writeheader()
      table.writerows(rows)
  elif file.suffix == ".parquet":
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
  elif file.suffix == ".jsonl":
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  else:
    file.write_text(json.dumps(rows))
  return file


def stream(root, *names, benchmark="tasks", **options):
  data = config.Data(benchmark=benchmark, root=str(root), **options)
  return load_stream(data, config.Stream(names), seed=0)


def examples(rows):
  return [Example(row["input"], (row["output"],)) for row in rows]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_each_format_gives_the_same_rows(tmp_path, ending):
  for split in ("train", "validation", "test"):
    write(tmp_path / f"mail/{split}{ending}", ROWS)
  [task] = stream(tmp_path)
  assert list(task.train) == list(task.dev) == list(task.test) == examples(ROWS)


def test_dev_and_test_are_set_aside_by_seed_where_they_are_not_given(tmp_path):
  write(tmp_path / "mail.csv", ROWS)
  (tmp_path / "README.md").write_text("not a task")
  [task] = stream(tmp_path)
  [again] = stream(tmp_path)
  assert (len(task.train), len(task.dev), len(task.test)) == (17, 1, 2)
  assert sorted(map(str, (*task.train, *task.dev, *task.test))) == sorted(map(str, examples(ROWS)))
  assert task == again


def test_a_task_file_says_what_columns_hold(tmp_path):
  rows = [{"title": f"t{i}", "body": f'b{i}\n"quoted"', "team": i % 2} for i in range(8)]
  write(tmp_path / "mail/train.csv", rows)
  (tmp_path / "mail/task.toml").write_text(
    'instruction = "Which team?"\ninput = "{title}: {body}"\noutput = "team"\n'
    'labels = ["billing", "sales"]\nmetric = "accuracy"\nmax_train = 6\n'
  )
  [task] = stream(tmp_path)
  assert (task.name, task.definition, task.metric) == ("mail", "Which team?", "accuracy")
  assert task.labels == ("billing", "sales")
  everything = {*task.train, *task.dev, *task.test}
  assert everything == {
    Example(f't{i}: b{i}\n"quoted"', (["billing", "sales"][i % 2],)) for i in range(6)
  }


def test_a_list_of_texts_is_several_references(tmp_path):
  rows = [{"input": "x", "output": ["a", "b"]}, {"input": "y", "output": ["c"]}] * 6
  write(tmp_path / "mail/train.parquet", rows)
  [task] = stream(tmp_path)
  assert {example.references for example in task.train} == {("a", "b"), ("c",)}


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("mail.csv", "input,output\n", r"mail\.csv: no row in it"),
    ("mail.csv", "", r"mail\.csv: no row in it"),
    ("mail.csv", "input,output\na,b,c\n", r"mail\.csv:2: 3 cells under a heading of 2"),
    ("mail.csv", "input,input\na,b\n", r"mail\.csv:1: the heading needs a name of its own"),
    ("mail.csv", 'input,output\n"a,b\n', r"mail\.csv:2: cannot be read as a table"),
    (
      "mail.csv",
      "question,output\na,b\n",
      r"no column \'input\' among question, output; say in .*mail\.toml what to read: input = ",
    ),
    ("mail.jsonl", '{"input": 3}\n', r"mail\.jsonl:1: no column 'output'"),
    (
      "mail.csv",
      "text,label\na,b\n",
      r"no column 'input', 'output' among text, label; .*: input = \S+, output = \S+$",
    ),
    (
      "mail.jsonl",
      '{"input": null, "output": "x"}\n',
      r"column 'input' holds None; it must hold text",
    ),
    (
      "mail.jsonl",
      '{"input": NaN, "output": "x"}\n',
      r"column 'input' holds nan; it must hold text",
    ),
    ("mail.csv", "input;output\na;b\n", r"mail\.csv:1: its heading has ';' between its names"),
    ("mail.csv", '\ufeff"input";"output"\n"a";"b"\n', r"mail\.csv:1: its heading has ';' between"),
    ("mail.csv", "input\toutput\na\tb\n", r"has '\\t' between its names, not ','; save it with"),
    ("mail.tsv", "input,output\na,b\n", r"mail\.tsv:1: its heading has ',' between its names"),
    ("mail.csv", "input,output,input\na,b,c\n", r"of its own for each column; it has 'input' 2"),
    ("mail.jsonl", '["input"]\n', r"mail\.jsonl:1: a row must be an object, not list"),
    ("mail.json", '{"input": "a"}', r"mail\.json: must hold a list of rows, not dict"),
    ("mail.json", '{"Instances": []}', r"give --data\.benchmark natural_instructions or superni"),
    ("mail.parquet", "PAR1", r"mail\.parquet: cannot be read as Parquet"),
    ("mail.jsonl", '{"input": "a", "output": []}\n', r"column 'output' holds an empty list"),
    (
      "mail/notes.csv",
      "input,output\na,b\n",
      r"mail/notes\.csv: nobody would read a file of this name; a task's files are task\.toml, t",
    ),
    ("mail/a.txt", "a", r"mail/train: no such file with an ending of \.jsonl"),
    ("mail/mail.toml", "", r"mail/mail\.toml: nobody would read a file of this name"),
    ("mail/Train.csv", "input,output\na,b\n", r"mail/Train\.csv: nobody would read"),
    ("mail.TOML", "", r"mail\.TOML: nobody would read a file .* files are mail\.toml, mail, with"),
    ("train.csv", "input,output\na,b\n", r"holds train, which are splits of one task; put them"),
    ("mail.jsonl", '{"input": "a", "output": "b"}\n', r"too few rows to set test aside \(1 left"),
    ("two\nlines.csv", "input,output\na,b\n", r"task 'two\\nlines': its name cannot be printed"),
  ],
)
def test_wrong_files_are_named(tmp_path, name, content, message):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=message):
    stream(tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("input = ", r"mail\.toml: not TOML"),
    ('imput = "x"', r"mail\.toml: no key 'imput'; did you mean input\?"),
    ("input = 3", r"mail\.toml: input must be str, not int"),
    ("[project]", r"no key 'project'; what a task's file may say is instruction, input, output"),
    ("max_train = -1", r"max_train -1: must not be negative"),
    ("test = 1.5", r"test 1\.5: must be a share between 0 and 1"),
    ("dev = 1", r"dev 1: must be a share"),
    ("max_train = true", r"max_train must be int, not bool"),
    ('metric = "bleu"', r"metric 'bleu': must be benchmark, rouge_l"),
    ("labels = [1]", r"labels must be names, as texts"),
    ('labels = ["a"]', r"labels has no 'yes', which a row of the task has"),
    ('[source]\nkind = "datasets"', r"\[source\]: path is missing"),
    ('[source]\nkind = "kaggle"\npath = "x"', r"kind 'kaggle': must be datasets or tfds"),
    ("source = 3", r"mail\.toml: source must be a table, \[source\], not int"),
    ('where = "x"', r"mail\.toml: no key 'where'"),
    ('labels = ["yes", "yes"]', r"labels: two numbers have one name"),
    ('labels = ["1", "2"]', r"labels: \['1'\] is the name of one number and itself another"),
    ('input = "{input"', r"input '\{input': must be a column, or a text with columns in braces"),
    ('output = ""', r"output '': must be a column"),
    ('[source]\npath = "x"\ntrain = ""', r"\[source\] train is empty"),
  ],
)
def test_wrong_task_files_are_named(tmp_path, content, message):
  write(tmp_path / "mail.csv", ROWS)
  (tmp_path / "mail.toml").write_text(content)
  with pytest.raises(InputError, match=message):
    stream(tmp_path)


def test_two_files_of_one_split_are_refused(tmp_path):
  for ending in ("csv", "jsonl"):
    write(tmp_path / f"mail/train.{ending}", ROWS)
  with pytest.raises(InputError, match="two files of one split; remove one"):
    stream(tmp_path)


@pytest.mark.parametrize("name", ["mail.toml", "mail.csv"])
def test_a_file_beside_its_tasks_folder_is_refused(tmp_path, name):
  write(tmp_path / "mail/train.csv", ROWS)
  (tmp_path / name).write_text("")
  with pytest.raises(InputError, match=r"the task is the folder .*mail; move the file into it"):
    stream(tmp_path)


def test_endings_may_be_in_upper_case(tmp_path):
  write(tmp_path / "mail.csv", ROWS).rename(tmp_path / "mail.CSV")
  assert [task.name for task in stream(tmp_path)] == ["mail"]


def test_a_column_that_python_cannot_hold_is_named(tmp_path):
  row = {"input": "a", "output": "b", "when": np.datetime64(10**18, "us")}
  write(tmp_path / "mail.parquet", [row])
  with pytest.raises(InputError, match=r"mail\.parquet: column 'when': cannot be read as Parq"):
    stream(tmp_path)


def test_limits_hold_for_what_is_set_aside(tmp_path):
  write(tmp_path / "mail.csv", ROWS * 10)
  (tmp_path / "mail.toml").write_text("max_dev = 3\nmax_test = 5")
  [task] = stream(tmp_path)
  assert (len(task.train), len(task.dev), len(task.test)) == (192, 3, 5)


@pytest.mark.parametrize("number", [int, float])
def test_numbers_have_the_names_that_the_labels_give_them(tmp_path, number):
  rows = [{"input": f"x{i}", "output": number(i % 3)} for i in range(12)]
  write(tmp_path / "mail.jsonl", rows)
  (tmp_path / "mail.toml").write_text('labels = ["one star", "two stars", "three stars"]')
  [task] = stream(tmp_path)
  names = {int(one.input[1:]) % 3: one.references[0] for one in task.train}
  assert names == {0: "one star", 1: "two stars", 2: "three stars"}


# Hubs, in the formats that their libraries write.


def hub_task(root, path, **more):
  lines = ['input = "text"', 'output = "label"', "[source]", f'path = "{path}"']
  lines += [f"{key} = {json.dumps(value)}" for key, value in more.items()]
  root.mkdir(exist_ok=True)
  (root / "mail.toml").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def arrow(tmp_path_factory):
  """A dataset as `datasets` saves it, Arrow files with class labels; its test rows have none."""
  import datasets

  folder = tmp_path_factory.mktemp("arrow") / "saved"
  features = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
  )
  rows = {"text": [f"row {i}" for i in range(12)], "label": [i % 2 for i in range(12)]}
  unknown = rows | {"label": [-1] * 12}
  parts = {"train": rows, "validation": rows, "test": unknown}
  datasets.DatasetDict(
    {name: datasets.Dataset.from_dict(part, features) for name, part in parts.items()}
  ).save_to_disk(folder)
  return folder


def test_rows_of_datasets_have_their_labels_names(arrow, tmp_path):
  hub_task(tmp_path, arrow, train="train", test="validation")
  [task] = stream(tmp_path)
  assert task.test == tuple(Example(f"row {i}", (["no", "yes"][i % 2],)) for i in range(12))
  assert {*task.train, *task.dev} == set(task.test)


def test_a_hub_folder_of_parquet_files_is_streamed_up_to_a_limit(tmp_path):
  rows = [{"text": f"row {i}", "label": str(i)} for i in range(50)]
  write(tmp_path / "hub/data/train-00000-of-00001.parquet", rows)
  hub_task(tmp_path / "tasks", tmp_path / "hub", streaming=True)
  file = tmp_path / "tasks/mail.toml"
  file.write_text("max_train = 20\n" + file.read_text())
  [task] = stream(tmp_path / "tasks")
  found = sorted(int(one.references[0]) for one in (*task.train, *task.dev, *task.test))
  assert found == list(range(20))


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path):
  import tensorflow_datasets as tfds

  class Mail(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for number in range(12):
        yield number, {"text": f"rów {number}", "label": number % 2}

  builder = Mail(data_dir=str(tmp_path / "tfds"), file_format="array_record")
  builder.download_and_prepare()
  assert list(builder.data_path.glob("*.array_record*"))
  hub_task(tmp_path / "tasks", builder.data_path, kind="tfds")
  [task] = stream(tmp_path / "tasks")
  found = {*task.train, *task.dev, *task.test}
  assert found == {Example(f"rów {i}", (["no", "yes"][i % 2],)) for i in range(12)}
  hub_task(tmp_path / "tasks", builder.data_path, kind="tfds", test="validation")
  with pytest.raises(InputError, match=r"no split 'validation'; it has train"):
    stream(tmp_path / "tasks")


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"test": "test"}, r"mail\.toml: \[source\] .*test: row 1: has no label"),
    ({"test": "proof"}, r"no split 'proof'; it has train, validation, test"),
  ],
)
def test_what_is_wrong_with_a_hubs_rows_is_named(arrow, tmp_path, more, message):
  hub_task(tmp_path, arrow, **more)
  with pytest.raises(InputError, match=message):
    stream(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
  hub_task(tmp_path, "nobody/nothing")
  with pytest.raises(InputError, match=r"\[source\] nobody/nothing: datasets cannot read it \("):
    stream(tmp_path)


# Other benchmarks' layouts.


def test_trace_has_whole_prompts_and_a_metric_for_each_task(tmp_path):
  rows = [{"prompt": f"Q{i}?", "answer": f"A{i}"} for i in range(3)]
  for task in ("FOMC", "Py150"):
    for split in ("train", "eval", "test"):
      write(tmp_path / task / f"{split}.json", rows)
  tasks = stream(tmp_path, benchmark="trace")
  assert [(task.name, task.metric) for task in tasks] == [
    ("FOMC", "exact_match"),
    ("Py150", "edit_similarity"),
  ]
  assert tasks[0].dev == tuple(Example(f"Q{i}?", (f"A{i}",)) for i in range(3))
  write(tmp_path / "FOMC/eval.json", [{"prompt": "Q"}])
  with pytest.raises(InputError, match=r"eval\.json: row 1: field 'answer' must be text"):
    stream(tmp_path, benchmark="trace")


def test_natural_instructions_are_one_file_a_task(tmp_path):
  instances = [{"id": str(i), "input": f"in {i}", "output": [f"out {i}"]} for i in range(30)]
  content = {
    "Definition": ["Do it."],
    "Positive Examples": [{"input": "p", "output": "q", "explanation": "r"}],
    "Negative Examples": [],
    "Instances": instances,
  }
  (tmp_path / "task9_x.json").write_text(json.dumps(content))
  [task] = stream(tmp_path, benchmark="natural_instructions")
  assert (task.name, task.definition) == ("task9_x", "Do it.")
  assert task.test == tuple(Example(f"in {i}", (f"out {i}",)) for i in range(3))
  assert len(task.train) + len(task.dev) == 27
  [task] = stream(tmp_path, benchmark="natural_instructions", positive_examples=2)
  assert task.definition == "Do it.\n\nPositive Example 1 -\nInput: p\nOutput: q"


def test_what_is_odd_in_rows_is_counted_and_what_is_cut_names_its_option():
  codec = learner.make_codec(mini_config, T5_MINI)
  long, usual = " ".join(["word"] * 200), Example("the film", ("bored",))
  rows = (usual, usual, Example(long, ("bored",)), Example(" ", (long,)))
  task = Task("t", "Tell it.", rows, (usual,), (Example("another", (long,)),))
  found = figures_of(PreparedTask(0, task, codec), codec)
  assert found == {
    "train": 4,
    "dev": 1,
    "test": 1,
    "duplicates": 1,
    "seen": 1,
    "empty": 1,
    "cut_inputs": 1,
    "cut_answers": 2,
  }
  assert words_of("t", found | {"commonest": 50}).startswith(
    "t: 4 train, 1 dev, 1 test (always the commonest training answer would score 50); "
  )
  assert words_of("t", found).endswith(
    "; inputs cut to --data.max-source-length: 1; answers cut to --data.max-target-length: 2; few "
    "test rows: one is 100 points of the score"
  )


def test_the_three_tasks_of_the_page_are_written_as_it_says(tmp_path):
  import own_tasks

  own_tasks.main([str(tmp_path)])
  sizes = {"helpdesk_topic": 460, "hotel_comments": 420, "meeting_day": 440}
  for name, count in sizes.items():
    said = read_task_file(tmp_path / f"{name}.toml")
    examples = [said.example(row) for row in read_table(tmp_path / f"{name}.csv")]
    assert len({example.input for example in examples}) == len(examples) == count
    assert len({one.references[0] for one in examples}) == (3 if name == "hotel_comments" else 5)
  assert "My laptop fan is roaring" in (tmp_path / "helpdesk_topic.csv").read_text()
