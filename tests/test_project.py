"""The shape of the code base: imports go down the house only, and whatever is imported is named in requirements.txt."""
import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From roof to cellar. A module stands on the line that has the longest beginning of its name, and imports from its own
# entry or from lines below.
HOUSE = """
  train predict report plan
  continual
  generator
  evaluation
  training
  methods
  mini.make_backbone
  backbones
  data
  mini
  arm sals pet data.tasks
  sharding config
  errors
"""
FLOORS = {name: floor for floor, names in enumerate(HOUSE.split("\n")) for name in names.split()}
SOURCES = sorted((ROOT / "sapt_jax").rglob("*.py"))
PROGRAMS = sorted(path for folder in ("benchmarks", "configs", "launch") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
  """sapt_jax/pet/lora.py -> pet.lora; sapt_jax/methods/__init__.py -> methods."""
  return ".".join(path.relative_to(ROOT / "sapt_jax").with_suffix("").parts).removesuffix(".__init__")


def entry_of(module: str) -> str | None:
  """The entry of HOUSE that a module belongs to."""
  return max((name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len, default=None)


def imports_of(path: Path) -> set[str]:
  """Full names of all that a file imports, at any depth; for `from a import b` both a and a.b."""
  names: set[str] = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
  return names


@pytest.mark.parametrize("path", [path for path in SOURCES if path != ROOT / "sapt_jax" / "__init__.py"], ids=name_of)
def test_imports_go_down(path):
  module = name_of(path)
  here = entry_of(module)
  assert here is not None, f"{module} stands nowhere in HOUSE: say where it belongs"
  known = {name_of(other) for other in SOURCES}
  used = {name.removeprefix("sapt_jax.") for name in imports_of(path) if name.startswith("sapt_jax.")} & known
  upward = {name for name in used if (there := entry_of(name)) != here and there and FLOORS[there] <= FLOORS[here]}
  assert not upward, f"{module} imports {sorted(upward)}, which stand on its own floor or above"


def test_every_import_is_a_declared_dependency():
  plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  declared = {plain(re.split(r"[<>=!~;\[ ]", line)[0]) for line in (ROOT / "requirements.txt").read_text().splitlines()
              if line.strip() and not line.startswith("#")}
  distributions = metadata.packages_distributions()
  own = {*sys.stdlib_module_names, "sapt_jax", "benchmarks", "configs"}
  for path in SOURCES + PROGRAMS:
    for package in {name.split(".")[0] for name in imports_of(path)} - own:
      owners = {plain(name) for name in distributions.get(package, [package])}
      assert owners & declared, f"{path.relative_to(ROOT)} imports {package}; requirements.txt names none of {owners}"
