"""What a run refuses, before it computes anything and with nothing lost: exit code 2, and one line
that names the thing and the way out.
"""

import fcntl
import json

import pytest
import tiny

from sapt_jax import train

# What is wrong -> extra arguments, what is done to the data and model folders, what the one line
# must name. {} is the folder of both.
WRONG = {
  "no data folder": ("--data.root {}/nowhere", None, ["data.root", "nowhere"]),
  "a folder that nothing reads": (
    "--data.benchmark mini",
    None,
    ["data.root", "--data.benchmark tasks"],
  ),
  "a task to begin at where none is": ("--from-task 2", None, ["--from-task 2", "no task yet"]),
  "no model folder": ("--backbone.path {}/nowhere", None, ["backbone.path", "nowhere"]),
  "unknown option": ("--fit.stepz 3", None, ["--fit.stepz"]),
  "wrong value": ("--fit.batch-size 0", None, ["fit.batch_size 0"]),
  "wrong choice": ("--method.name magic", None, ["magic", "sequential"]),
  # tyro writes a heading over each; it is not part of the line.
  "wrong place": (
    "--pet.targets q_proj",
    None,
    ["error: --pet.targets 'q_proj': is none of", "'gate'"],
  ),
  "wrong share": ("--pet.dropout 1.5", None, ["error: pet.dropout 1.5: must be in [0, 1)"]),
  "unknown task": ("--stream.tasks task009", None, ["task009", "task001_colour"]),
  "empty task file": ("", ("train.json", ""), ["train.json"]),
  "no input": (
    "",
    ("train.json", '{"Definition": "d", "Instances": [{"output": "x"}]}'),
    ["train.json", "Instances[0]", "'input'"],
  ),
  "not utf-8": ("", ("train.json", b'{"Definition": "\xe9"}'), ["train.json:1", "UTF-8"]),
  "no weights": ("", ("model.safetensors", None), ["model.safetensors"]),
  "no config": ("", ("config.json", None), ["config.json"]),
  "other architecture": (
    "",
    ("config.json", json.dumps(tiny.T5 | {"model_type": "gpt2"})),
    ["config.json", "'gpt2'", "t5, llama"],
  ),
  "other shape": (
    "",
    ("config.json", json.dumps(tiny.T5 | {"d_model": 40})),
    ["config.json asks for"],
  ),
  "fewer layers": (
    "",
    ("config.json", json.dumps(tiny.T5 | {"num_layers": 1})),
    ["not used: encoder.block.1"],
  ),
  "no tokenizer": ("", ("tokenizer.json", None), ["tokenizer"]),
  "no rows at once": ("--evaluation.batch-size 0", None, ["evaluation.batch_size 0"]),
  "no devices": ("--mesh.data 0", None, ["mesh.data 0"]),
  "no room for an input": (
    "--data.max-source-length 8",
    None,
    ["data.max_source_length 8", "task001_colour"],
  ),
  "blocks that cannot be chosen": (
    "--method.name o_lora --pet.top-k 2",
    None,
    ["pet.top_k 2", "o_lora"],
  ),
  "the same blocks chosen for good": (
    "--method.attention published --pet.top-k 1",
    None,
    ["pet.top_k 1", "routed"],
  ),
  "no room for a pseudo input": (
    "--generator.max-length 4",
    None,
    ["generator.max_length 4", "task001_colour"],
  ),
  "a task twice": ("--stream.tasks task001 task001_colour", None, ["task001_colour", "already"]),
  "negative seed": ("--seed -1", None, ["seed -1"]),
  "a seed of 65 bits": ("--seed 18446744073709551616", None, ["seed 18446744073709551616"]),
  "endless steps": ("--fit.steps 9999999999", None, ["fit.steps 9999999999", "less than"]),
  "an endless rate": ("--fit.learning-rate inf", None, ["fit.learning_rate inf", "finite"]),
  "an endless method": ("--method.routing-learning-rate inf", None, ["routing_learning_rate inf"]),
  "endless answers": ("--data.max-target-length 9999999", None, ["max_target_length 9999999"]),
  "half a character": (
    "",
    ("train.json", r'{"Definition": "d", "Instances": [{"input": "\ud83d", "output": "x"}]}'),
    ["train.json", "Instances[0].input", r"\ud83d"],
  ),
  "half a file of weights": (
    "",
    ("model.safetensors", "version https://git-lfs.github.com/spec/v1"),
    ["model.safetensors", "in full"],
  ),
  "another program's tokenizer": ("", ("tokenizer.json", '{"version": "9.9"}'), ["tokenizer"]),
  "attention of another device": (
    "--backbone.attention tokamax",
    None,
    ["backbone.attention tokamax: it runs on NVIDIA GPUs alone; give xla, or auto"],
  ),
  "no per_task run": ("--single {}/data/SuperNI", None, ["single", "scores.json"]),
  "too few devices": (
    "--mesh.data 4 --mesh.fsdp 2 --fit.batch-size 8 --generator.batch-size 8",
    None,
    ["needs 8 devices"],
  ),
  "broken config file": ("--config {}/model/config.json", None, ["--config", "config.json"]),
}


@pytest.mark.parametrize(("extra", "harm", "named"), WRONG.values(), ids=WRONG)
def test_wrong_input_ends_with_code_2_and_one_line_that_names_it(
  world, tmp_path, monkeypatch, capsys, extra, harm, named
):
  tiny.benchmark_folder(tmp_path / "data", tiny.TASKS)
  model = tiny.model_folder(tmp_path / "model", tiny.T5)
  if harm is not None:
    name, content = harm
    file = tmp_path / "data/SuperNI/task001_colour" / name if name == "train.json" else model / name
    file.unlink()
    if content is not None:
      file.write_bytes(content if isinstance(content, bytes) else content.encode())
  arguments = [
    *world,
    "--output",
    tmp_path / "run",
    "--data.root",
    tmp_path / "data",
    "--backbone.path",
    model,
  ]
  code, complaint = tiny.run_program(
    train, [*arguments, *extra.format(tmp_path).split()], monkeypatch, capsys
  )
  assert code == 2
  assert complaint.startswith("error: ")
  assert complaint.count("\n") == 1
  for words in named:
    assert words in complaint


def test_a_second_process_in_the_same_folder_is_refused(world, tmp_path, monkeypatch, capsys):
  (tmp_path / "run").mkdir()
  with (tmp_path / "run" / "lock").open("a+") as lock:
    lock.write("process 7 on elsewhere\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    code, complaint = tiny.run_program(
      train, [*world, "--output", tmp_path / "run"], monkeypatch, capsys
    )
  assert (code, "process 7 on elsewhere is at work here" in complaint) == (2, True)


def test_a_folder_of_something_else_is_left_alone(world, tmp_path, monkeypatch, capsys):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.tex").write_text("precious")
  code, complaint = tiny.run_program(
    train, [*world, "--output", tmp_path / "run"], monkeypatch, capsys
  )
  assert (code, "thesis.tex" in complaint) == (2, True)
  assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", "thesis.tex"]
