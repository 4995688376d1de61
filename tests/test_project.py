"""The shape of the code base: imports go down the house only, and whatever is imported is a
declared dependency.
"""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From roof to cellar. A module stands on the line that has the longest beginning of its name, and
# imports from its own entry or from lines below.
HOUSE = """
  __main__
  api train predict report export plan serve forget join import
  continual answering
  remat
  plan.programs plan.figures
  plan.hardware plan.hlo
  plan.instructions plan.sizes
  imported
  stored_run
  run_story
  results single paired
  study scoring
  run_inputs
  generator learner run_folder interop
  run_identity
  run_options saved_options paper mini.default progress snapshots tracking
  methods
  evaluation
  training
  methods.base
  methods.features methods.relatives
  methods.lesson
  mini.make_backbone
  backbones
  data
  mini
  arm
  sals pet data.tasks
  cli plots processes losses run_log remote
  sharding config cost precision streams provenance run_lock
  checks text_files requeued option_help
  errors stopping
"""
FLOORS = {name: floor for floor, names in enumerate(HOUSE.split("\n")) for name in names.split()}
SOURCES = sorted((ROOT / "sapt_jax").rglob("*.py"))
OWNERS = metadata.packages_distributions()
# What one program alone imports, inside a function, may import at its top what its extra names.
EXTRA_OF = {"serve.app": "serve"}
PROGRAMS = sorted(
  path for folder in ("benchmarks", "configs", "launch") for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
  """sapt_jax/pet/lora.py -> pet.lora; sapt_jax/methods/__init__.py -> methods."""
  return ".".join(path.relative_to(ROOT / "sapt_jax").with_suffix("").parts).removesuffix(
    ".__init__"
  )


def entry_of(module: str) -> str | None:
  """The entry of HOUSE that a module belongs to."""
  return max(
    (name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len, default=None
  )


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
  """Full names of what a file imports, everywhere or at its top alone; for `from a import b` both a
  and a.b.
  """
  names: set[str] = set()
  tree = ast.parse(path.read_text(encoding="utf-8"))
  for node in ast.walk(tree) if everywhere else tree.body:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
  return names


def distributions(requirements: list[str]) -> set[str]:
  """Names of requirement lines, in the one spelling."""
  names = (re.split(r"[<>=!~;\[ ]", line)[0] for line in requirements if line[:1].isalpha())
  return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


@pytest.mark.parametrize(
  "path", [path for path in SOURCES if path != ROOT / "sapt_jax" / "__init__.py"], ids=name_of
)
def test_imports_go_down(path):
  module = name_of(path)
  here = entry_of(module)
  assert here is not None, f"{module} stands nowhere in HOUSE: say where it belongs"
  known = {name_of(other) for other in SOURCES}
  used = {
    name.removeprefix("sapt_jax.") for name in imports_of(path) if name.startswith("sapt_jax.")
  } & known
  upward = {
    name
    for name in used
    if (there := entry_of(name)) != here and there and FLOORS[there] <= FLOORS[here]
  }
  assert not upward, f"{module} imports {sorted(upward)}, which stand on its own floor or above"


PACKAGES = [name_of(path) for path in SOURCES if path.name == "__init__.py" and name_of(path)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_needs_what_needs_it(package):
  """Whoever imports a module of a package imports the package, and so all that it imports; were one
  of those the importer, it would depend on who comes first.
  """
  uses = {
    name_of(path): {
      name.removeprefix("sapt_jax.") for name in imports_of(path, everywhere=False)
    } & {name_of(other) for other in SOURCES}
    for path in SOURCES
  }  # fmt: skip
  needed, new = set(), {package}
  while new:
    needed |= new
    new = {name for module in new for name in uses[module]} - needed
  outside = {module for module in needed if not f"{module}.".startswith(f"{package}.")}
  inside = re.compile(rf"{package}(\.|$)")
  assert not [module for module in outside if any(map(inside.match, uses[module]))]


@pytest.mark.parametrize("path", SOURCES + PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared_dependencies(path):
  required = distributions((ROOT / "requirements.txt").read_text().splitlines())
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  optional = distributions([line for lines in extras.values() for line in lines])
  module = name_of(path) if path in SOURCES else ""
  of_extra = distributions(extras[EXTRA_OF[module]]) if module in EXTRA_OF else set()
  own = {
    *sys.stdlib_module_names,
    "sapt_jax",
    *(program.stem for program in PROGRAMS if program.parent == path.parent),
  }
  # An optional dependency may be imported where it is used, not by everyone who imports the module.
  for names, allowed in (
    (imports_of(path, everywhere=False), required | of_extra),
    (imports_of(path), required | optional),
  ):
    for package in {name.split(".")[0] for name in names} - own:
      owners = distributions(OWNERS.get(package, [package]))
      assert owners & allowed, (
        f"imports {package}: not in requirements.txt nor (inside a function) in an extra"
      )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_needs_an_extra_is_imported_where_it_is_used(path):
  at_top = imports_of(path, everywhere=False)
  assert not at_top & {f"sapt_jax.{module}" for module in EXTRA_OF}


# What reads JSON without sapt_jax/text_files.py: what the program itself has just made, and the
# run's own log, in which a line may be cut short.
OWN_JSON = {
  "evaluation.kept_answers",
  "plan.hlo",
  "run_folder",
  "run_identity",
  "run_log",
  "text_files",
}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_of_others_are_read_in_one_place(path):
  tree = ast.parse(path.read_text(encoding="utf-8"))
  called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
  assert name_of(path) in OWN_JSON or not called & {"json.loads", "json.load"}


@pytest.mark.parametrize(
  "path", [*SOURCES, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_is_longer_than_contributing_says(path):
  assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
