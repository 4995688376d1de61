"""What mkdocs does with the pages of docs/, beyond building them: writes the list of options, takes
CONTRIBUTING.md along, and has both of GitHub and the site read the same lists and links.

GitHub nests lists as deep as their text stands, and begins one without an empty line before it;
Python-Markdown wants four spaces and the line. Links that lead out of docs/ work in the repository;
on the site they lead to a copy of the file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
ITEM = re.compile(r"(?:[-*]|\d+\.) +(?=\S)")
# Pages made of files outside docs/.
PAGES = {"CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages that stand elsewhere, and copies of the files that pages link to."""
  texts = {page.src_uri: page.content_string for page in files.documentation_pages()}
  for path, page in PAGES.items():
    text = LINK.sub(lambda link: posixpath.relpath(link[1], "docs"), (ROOT / path).read_text())
    files.append(File.generated(config, page, content=text))
    texts[page] = text
  for page, text in texts.items():
    for link in LINK.findall(text):
      path = outside(page, link)
      if path and path not in PAGES and (ROOT / path).is_file() and path not in files.src_uris:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
  return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
  """A page as Python-Markdown reads it."""
  text = (
    markdown.replace("<!-- options -->", options()) if page.file.name == "options" else markdown
  )
  return nested_by_four(with_links(text, page.file.src_uri, files))


def outside(page: str, link: str) -> str:
  """The path in the repository that a page's link leads to, if it is not in docs/; else nothing."""
  path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
  return "" if path.startswith("docs/") else path


def with_links(text: str, page: str, files: Files) -> str:
  """The text with links out of docs/ that the site can follow; where it has no file for one, such
  as for a folder, its words alone.
  """

  def mended(found: re.Match) -> str:
    words, link = found[1], found[2]
    path = outside(page, link)
    if not path:
      return found[0]
    target = PAGES.get(path, path)
    there = files.get_file_from_path(target) is not None
    return f"[{words}]({posixpath.relpath(target, posixpath.dirname(page))})" if there else words

  return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)\)", mended, text)


def nested_by_four(text: str) -> str:
  """The text with four spaces for each list that a line is in, and an empty line before a list."""
  lines: list[str] = []
  depths: list[int] = []  # where the text of each open item begins
  fence = ""
  for line in text.splitlines():
    rest, indent = line.lstrip(), len(line) - len(line.lstrip())
    if not rest:
      lines.append("")
      continue
    while depths and indent < depths[-1]:
      depths.pop()
    inside, beyond = len(depths), indent - (depths[-1] if depths else 0)
    if marker := re.match(r"```+|~~~+", rest):
      fence = "" if fence and rest.startswith(fence) else fence or marker[0]
    elif not fence and beyond < 4 and (item := ITEM.match(rest)):
      above = lines[-1].strip() if lines else ""
      opens = above and not ITEM.match(above) and not was_item(lines, 4 * inside)
      lines += [""] if opens else []
      depths.append(indent + len(item[0]))
      rest, beyond = f"{item[0].strip():<4}" + rest[len(item[0]) :], 0
    lines.append(" " * (4 * inside + beyond) + rest)
  return "\n".join(lines) + "\n"


def was_item(lines: list[str], indent: int) -> bool:
  """Whether the block of text that these lines end with began as an item at this indent."""
  for line in reversed(lines):
    depth = len(line) - len(line.lstrip())
    if not line.strip() or depth < indent:
      return False
    if depth == indent:
      return bool(ITEM.match(line.strip()))
  return False


def options() -> str:
  """Every option of `sapt_jax.train`, a table for each group; the options of each method after
  those that all have.
  """
  import dataclasses

  from sapt_jax import option_help, train
  from sapt_jax.methods import METHODS

  defaults = train.options([])
  groups: dict[str, list[str]] = {}
  for option in option_help.options_of(type(defaults), defaults):
    group = option.name.rpartition(".")[0]
    if group != "method":
      groups.setdefault(group, []).append(row(option))
  groups["method"] = [
    f"| `--method.name` | {', '.join(f'`{name}`' for name in METHODS)} | "
    f"`{defaults.method.name}` | The method; its own options follow, a table for each. |"
  ]
  for name, method in METHODS.items():
    chosen = defaults.method if name == defaults.method.name else None
    own = [
      row(dataclasses.replace(option, name=f"method.{option.name}"))
      for option in option_help.options_of(method.Options, chosen)
      if option.name != "name"
    ]
    if own:
      groups[f"method.name {name}"] = own
  head = "| option | value | default | what it says |\n|---|---|---|---|\n"
  tables = (
    f"## {group or 'The run'}\n\n{head}" + "\n".join(rows) for group, rows in groups.items()
  )
  return "\n\n".join(tables) + "\n"


def row(option: Any) -> str:
  """One option as a row of a table."""
  text = re.sub(r"([|{}<>*_\[\]])", r"\\\1", option.text)
  value = f"`{option.value}`" if option.value else "a switch"
  cells = (f"`--{option.name.replace('_', '-')}`", value, f"`{option.default}`", text)
  return f"| {' | '.join(cells)} |"
