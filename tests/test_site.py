"""The pages of docs/: their links, the messages that they quote, and the site that they make."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sapt_jax import option_help, train
from sapt_jax.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MESSAGES = re.findall(
  r"^    (\S.*)$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)
NEEDS_MKDOCS = "builds the site with mkdocs, not installed here: pip install -e '.[docs]'"


@functools.cache
def templates():
  """Every text of the code, with the values that it is filled with as patterns; and how many
  letters of it are fixed.
  """
  found = {}
  for file in (ROOT / "sapt_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      parts = node.values if isinstance(node, ast.JoinedStr) else [node]
      fixed = [
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None
        for part in parts
      ]
      pattern = "".join(".+?" if text is None else re.escape(text) for text in fixed)
      found[pattern] = sum(len(text) for text in fixed if text is not None)
  return {pattern: letters for pattern, letters in found.items() if letters >= 15}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:50])
def test_a_quoted_message_is_still_in_the_code(message):
  words = re.sub(r"^(error|warning|stopped): ", "", message)
  fitting = [letters for pattern, letters in templates().items() if re.search(pattern, words)]
  assert fitting, "no text of sapt_jax/ is in it"
  assert max(fitting) > len(words) / 4


def test_the_page_quotes_enough_messages_and_a_made_up_one_would_be_found():
  assert len(MESSAGES) >= 20
  made_up = "FOLDER: begun with a different configuration (OPTION); use the same one again"
  assert not any(re.search(pattern, made_up) for pattern in templates())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
  text = re.sub(
    r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
  )
  for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
    assert (page.parent / link).exists(), link


def test_functions_that_the_method_page_names_are_there():
  text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
  named = re.findall(r"((?:`[\w.]+`,? ?)+) in `(sapt_jax/[\w/]+\.py)`", text)
  assert len(named) >= 15
  for names, file in named:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    there = {node.name for node in ast.walk(tree) if hasattr(node, "name") and node.name}
    for name in re.findall(r"[\w.]+", names):
      assert set(name.split(".")) <= there, f"{name} in {file}"


@pytest.fixture(scope="module")
def hook():
  pytest.importorskip("mkdocs", reason=NEEDS_MKDOCS)
  found = importlib.util.spec_from_file_location("hook", ROOT / "docs/hook.py")
  assert found
  assert found.loader
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module


def test_the_options_page_has_each_option_of_each_method(hook):
  names = set(re.findall(r"^\| `--([\w.-]+)`", hook.options(), re.MULTILINE))
  wanted = {option.name for option in option_help.options_of(train.TrainOptions, train.options([]))}
  for method in METHODS.values():
    wanted |= {f"method.{option.name}" for option in option_help.options_of(method.Options, None)}
  assert names == {name.replace("_", "-") for name in wanted}


def test_lists_are_nested_as_python_markdown_wants_them(hook):
  ours = (
    "Words:\n- one\n  goes on\n  - inner\n\n        code\n- two\n\nSteps:\n1. first\n   - deep\n"
  )
  theirs = (
    "Words:\n\n-   one\n    goes on\n\n    -   inner\n\n            code\n\n-   two\n\n"
    "Steps:\n\n1.  first\n    -   deep\n"
  )
  assert hook.nested_by_four(ours) == theirs
  kept = "```python\n- x\n  - y\n```\n\n    - code\n"
  assert hook.nested_by_four(kept) == kept


def test_the_site_is_built_without_a_warning(hook, tmp_path):
  for package in ("material", "mkdocstrings"):
    pytest.importorskip(package, reason=NEEDS_MKDOCS)
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "excluded from the built site" not in done.stderr
  pages = {path.parent.name: path.read_text() for path in tmp_path.glob("*/index.html")}
  assert {"options", "api", "method", "troubleshooting", "contributing"} <= set(pages)
  assert "fit.learning-rate" in pages["options"]
  assert "The answers to some inputs, in order" in pages["api"]  # of Pool.answer's docstring
  assert (tmp_path / "notebooks/tour.ipynb").is_file()
  for page in pages.values():
    # What a browser fetches by itself is all in the site.
    assert not re.findall(r"<(?:script|img)[^>]*src=\"?https?:", page)
    assert not re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*https?:", page)
