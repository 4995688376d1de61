"""What every test runs under (JAX on the CPU as four devices, no network),
and where reference data is found.
"""

import importlib.util
import mmap
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def known_to_xla(flag: str) -> bool:
  """Whether the installed XLA has this flag; one that it does not know ends the process."""
  found = importlib.util.find_spec("jaxlib")
  library = Path(found.origin if found and found.origin else "").with_name("libjax_common.so")
  if not library.is_file():
    return False
  with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    return content.find(flag.removeprefix("--").split("=")[0].encode() + b"\0") >= 0


# All of this must be in the environment before jax is imported; processes that tests start inherit
# it. Whoever sets a variable beforehand keeps their choice.
#
# Four devices: a CPU is one device to JAX, so without them no test could see a mesh, a collective
# or a resharding. They share the machine's cores and cost nothing where a test uses one device.
# Four is the least that lets two axes of a mesh be larger than one at the same time.
XLA_FLAGS = ["--xla_force_host_platform_device_count=4"]
# Compiling is most of what tests of small models cost; without these two it takes a third. Emitters
# of loops decide how fast a program runs, and splitting its code is for cores that have no test.
XLA_FLAGS += filter(
  known_to_xla, ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
)
os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Products in true float32 on every platform: that is what the tolerances are for.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
# Programs for tests run a few times on tiny arrays: optimising them is most of what they cost. What
# is counted in a program (sapt_jax/plan) is the same without it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Every model, tokenizer and data set in the tests is a local folder; reaching for a hub is a
# failure, at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
  """Keeps compiled programs in pytest's cache folder,
  for the next run and for the processes that tests start.

  Compiling is most of what small models cost: 6 s become 1.5 s for init, gradient and decoder of a
  3-layer T5. What comes back is the same program, with the same results, donation and memory
  analysis; its key covers the computation, the flags and the versions. `pytest --cache-clear` or
  `make clean` starts cold, as a fresh clone does.
  """
  if config.pluginmanager.hasplugin("cacheprovider") and config.cache is not None:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  if hasattr(config.option, "loadscopereorder"):
    config.option.loadscopereorder = False  # pytest_collection_modifyitems has put them in order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Files with slow tests come first, so that none is left when all other processes are done."""
  slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
  items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_go_with_their_file():
  """Each takes maps of memory; a process that keeps those of all files reaches the system's limit
  of 65,530 (vm.max_map_count), and then crashes in whatever asks for memory next.
  """
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def no_mesh() -> None:
  """No test works on the mesh that another one has left behind."""
  if "jax" in sys.modules:
    import jax
    import numpy as np

    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


@pytest.fixture(scope="session")
def shared() -> Path:
  """Reference data kept beside the checkout (goldens/, data/CL_Benchmark/, tools/),
  or where SAPT_JAX_SHARED says.
  """
  path = Path(os.environ.get("SAPT_JAX_SHARED", ROOT.parent / "shared"))
  if not path.is_dir():
    pytest.skip(f"no reference data at {path}: put it there or name its folder in SAPT_JAX_SHARED")
  return path


@pytest.fixture(scope="session")
def torch() -> ModuleType:
  """PyTorch, the independent implementation that some tests compare with."""
  missing = "compares with PyTorch, not installed here: pip install -e '.[torch]'"
  return pytest.importorskip("torch", reason=missing)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
  """The options of a short run, with a model and data to run on."""
  import tiny

  return tiny.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def loop(world: list[str]) -> Any:
  """The loop of these options, compiled once for all folders that it runs in."""
  from tests.runs import Loop

  return Loop(world)


@pytest.fixture(scope="session")
def finished(loop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run that went through without a stop; killed/1, ... beside it: what it would have left if it
  had been killed after its first save, ...
  """
  from tests.runs import killed_after_each_save

  folder = tmp_path_factory.mktemp("finished")
  with killed_after_each_save(folder / "run", folder / "killed"):
    loop.run(folder / "run")
  return folder / "run"
