"""--help: the options most used on two screens, and all of them on demand."""

import dataclasses
import re

import pytest

from sapt_jax import export, join, option_help, predict, train
from sapt_jax.errors import InputError
from sapt_jax.plan import __main__ as plan_program


def printed(program, arguments, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")
  with pytest.raises(SystemExit) as stop:
    program.main(arguments)
  assert stop.value.code == 0
  return capsys.readouterr().out


def names_in(text):
  return set(re.findall(r"^  --([\w.-]+)", text, flags=re.MULTILINE))


def flat(values, prefix=""):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name.replace("_", "-")


def test_help_all_has_each_option_with_a_text_and_its_default(capsys, monkeypatch):
  text = printed(train, ["--help-all", "--fit.steps", "7"], capsys, monkeypatch)
  options = train.options([])
  assert names_in(text) == set(flat(dataclasses.asdict(options)))
  for option in option_help.options_of(type(options), options):
    assert len(option.text) > 10, option.name
    assert option.default is not None, option.name
  words = " ".join(text.split())
  assert "Steps per task; 0: as many as `epochs` ask for. (default: 100)" in words
  assert "--stream.tasks [STR ...] Task names; a name may be cut short" in words
  assert max(map(len, re.sub(r"\{.*\}", "", text).splitlines())) <= 100


def test_help_is_two_screens_and_says_where_the_rest_is(capsys, monkeypatch):
  text = printed(train, ["--help"], capsys, monkeypatch)
  assert len(text.splitlines()) <= 105
  assert text.endswith("--help-all.\n")
  assert set(train.TrainOptions.MOST_USED) - {"method"} <= {
    name.replace("-", "_") for name in names_in(text)
  }


@pytest.mark.parametrize("program", [export, join, plan_program])
def test_each_program_says_what_must_be_given(program, capsys, monkeypatch):
  text = printed(program, ["-h"], capsys, monkeypatch)
  assert ("(must be given)" in " ".join(text.split())) == (program is not plan_program)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ("--fit.stepz 3", "--fit.stepz: no such option; did you mean --fit.steps?"),
    (
      "--fit.stepz 3 --fit.rat=3 --fit.batchsize 4",
      "--fit.stepz, --fit.rat=3, --fit.batchsize: no such option; did you mean --fit.batch-size or "
      "--fit.steps?",
    ),
    ("fitsteps", "fitsteps: no such option"),
    ("--fit.steps 1.5", "--fit.steps '1.5': is not a whole number"),
    ("--fit.learning-rate much", "--fit.learning-rate 'much': is not a number"),
    ("--fit.steps", "--fit.steps: needs a value"),
    ("--fit.decay lin", "--fit.decay 'lin': is none of 'none', 'linear', 'cosine'"),
  ],
)
def test_what_does_not_fit_is_named_in_few_words(options, said):
  with pytest.raises(InputError) as error:
    train.options(options.split())
  assert str(error.value) == f"{said} (see python -m sapt_jax.train --help-all)"


def test_what_must_be_given_is_named():
  with pytest.raises(InputError, match=r"^--input, --output: must be given \(see"):
    predict.main(["--run", "x"])
