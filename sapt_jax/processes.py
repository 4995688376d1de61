"""Several processes that run one program together, on one machine or many; alone, all of this does
nothing.

Every process runs the same code on the same data, and owns some devices of the one mesh
(sharding.py). Process 0 alone writes and prints. What is read from disk and decides how things go
on is decided by process 0 for all, so that no two ever wait for each other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pathlib
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from sapt_jax.config import Distributed
from sapt_jax.errors import FailedError, InputError, Stopped

T = TypeVar("T")
CHUNK = 1 << 26  # most bytes of what process 0 tells in one exchange
PATIENCE = 30  # seconds that a process which has ended waits for the others to end
WAITING = 5  # seconds after which a process says whom it waits for
LOST = 76  # exit code of a process that ends because another one is gone

# What launchers say of the processes they started: how many, which one this is, which one on its
# machine, and a variable without which JAX cannot find process 0. SLURM sets the last one inside
# srun alone, Open MPI up to version 4.
LAUNCHERS = {
  "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"),
  "Open MPI": (
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_MCA_orte_hnp_uri",
  ),
}

# The program's own, as signals are: whether it was asked to stop, and how often it has looked (see
# stop_asked).
_asked, _looks = threading.Event(), itertools.count(1)


@contextlib.contextmanager
def joined(options: Distributed) -> Iterator[None]:
  """Joins the other processes, if there are any, and has SIGTERM and Ctrl-C ask for a stop; must be
  entered before anything is computed.

  Where another process is lost or something fails here alone, the process is ended at once, since
  the others would wait for it.

  Raises:
    InputError: the others are not to be found. (If nobody answers for five minutes, JAX ends the
      process with code 134.)
  """
  together = _initialize(options)
  with _signals_ask(together):
    if not together:
      yield
      return
    yield from _ending_together()


def _ending_together() -> Iterator[None]:
  """The body of `joined` where others would wait for this process."""
  try:
    yield
  except (InputError, Stopped):
    raise  # all processes end alike, or wait PATIENCE seconds for those that do not
  except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear of it)
    _end_at_once(error)


def _initialize(options: Distributed) -> bool:
  """Starts jax.distributed as the options or a launcher's variables say; whether there was any need
  to.
  """
  arguments = arguments_of(options, os.environ, on_tpu=_on_tpu())
  if options.local_devices:
    jax.config.update("jax_num_cpu_devices", options.local_devices)
  if arguments is None:
    return False
  waiting = threading.Timer(
    WAITING, lambda: print(waited_for(options, os.environ), file=sys.stderr, flush=True)
  )
  waiting.daemon = True
  waiting.start()
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=options.heartbeat, shutdown_timeout_seconds=PATIENCE
    )
  except (ValueError, RuntimeError, OSError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"the other processes were not found ({reason}); check --distributed.* (docs/cluster.md)"
    ) from None
  finally:
    waiting.cancel()
  return True


def waited_for(options: Distributed, environment: Mapping[str, str]) -> str:
  """Whom a process waits for that the others keep waiting, and the way out, in one line."""
  if options.address:
    return (
      f"process {options.process_id} waits until all {options.processes} processes have come to "
      f"{options.address}; JAX gives up after five minutes"
    )
  for name, (count, rank, _, needed) in LAUNCHERS.items():
    if int(environment.get(count, 1)) > 1:
      return (
        f"process {environment.get(rank, '?')} waits for the {environment[count]} processes that "
        f"{name} announces ({count}); to run one alone, start a step of one (srun --ntasks 1) or "
        f"unset {needed}; JAX gives up after five minutes"
      )
  return "waiting for the other processes; JAX gives up after five minutes"


def arguments_of(
  options: Distributed, environment: Mapping[str, str], on_tpu: bool
) -> dict[str, Any] | None:
  """What jax.distributed.initialize is to be told; None: this process is alone.

  Raises:
    InputError: a launcher started several processes, but not so that they could find each other.
  """
  size = options.local_devices
  if options.address:
    explicit = {
      "coordinator_address": options.address,
      "num_processes": options.processes,
      "process_id": options.process_id,
    }
    return explicit | {
      "local_device_ids": list(range(size)) or None,
      "cluster_detection_method": "deactivate",
    }
  for name, (count, _, local, needed) in LAUNCHERS.items():
    if int(environment.get(count, 1)) == 1 or local not in environment:
      continue
    if needed not in environment and name == "SLURM":
      continue  # inside sbatch, but not srun: started once
    if needed not in environment:
      raise InputError(
        f"{name} started {environment[count]} processes without saying where process 0 is "
        f"({needed} is not set): give --distributed.address HOST:PORT --distributed.processes N "
        "--distributed.process-id I"
      )
    first = int(environment[local]) * max(size, 1)
    return {"local_device_ids": list(range(first, first + max(size, 1)))}
  return {"local_device_ids": list(range(size)) or None} if on_tpu else None


def _on_tpu() -> bool:
  """Whether TPUs are here and may be used; those of one machine are a cluster of one process."""
  here = "TPU_WORKER_HOSTNAMES" in os.environ or any(
    any(pathlib.Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*")
  )
  return (
    here
    and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    and importlib.util.find_spec("libtpu") is not None
  )


@contextlib.contextmanager
def _signals_ask(together: bool) -> Iterator[None]:
  """SIGTERM and SIGINT (Ctrl-C) ask for a stop; a second one ends the process, as it would have
  before (stopping.py). Where there are other processes, jax.distributed has SIGTERM, and SIGINT is
  passed on to it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def ask(number: int, _: object) -> None:
    signal.signal(number, before[number])
    if together:
      os.kill(os.getpid(), signal.SIGTERM)
    _asked.set()

  numbers = [signal.SIGINT] if together else [signal.SIGTERM, signal.SIGINT]
  before = {int(number): signal.signal(number, ask) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _asked.clear()


def _end_at_once(error: Exception) -> None:
  """Ends this process without waiting for any other."""
  if not isinstance(error, FailedError):  # its traceback is in the run's folder
    traceback.print_exc()
  text = " ".join(str(error).split())
  lost = re.search(
    r"gloo|nccl|coordination|heartbeat|connection|socket|unavailable", text, re.IGNORECASE
  )
  why = (
    "another process is gone; started again, all of them continue"
    if lost
    else "the others will end too"
  )
  print(
    f"error: process {jax.process_index()} of {jax.process_count()} ends, {why} ({text[:400]})",
    file=sys.stderr,
    flush=True,
  )
  if is_first():
    time.sleep(2)  # the others lose touch when process 0 ends; let them say why first
  os._exit(LOST if lost else 1)


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


def say(text: str, file: TextIO | None = None) -> None:
  """Prints, once for all processes."""
  if is_first():
    print(text, file=file, flush=True)


def first_does(action: Callable[[], object]) -> None:
  """Has process 0 do something to files while the others wait; all raise the InputError that it
  raises.
  """
  first_tells(lambda: (action(), None)[1])


def first_tells(look: Callable[[], T]) -> T:
  """What process 0 finds, told to all; all raise the InputError that it raises."""
  if jax.process_count() == 1:
    return look()
  content = b""
  if is_first():
    try:
      content = pickle.dumps((look(), None))
    except InputError as error:
      content = pickle.dumps((None, str(error)))
  found, complaint = pickle.loads(_told(content))
  if complaint is not None:
    raise InputError(complaint)
  return cast(T, found)


def _told(content: bytes) -> bytes:
  """The content that process 0 has, and bytes behind it that mean nothing."""
  whole, rest = multihost_utils.broadcast_one_to_all(
    np.array(divmod(len(content), CHUNK), np.int32)
  )
  told = bytearray()
  # Exchanges of few sizes: each is a program to compile.
  for size in [CHUNK] * int(whole) + [1 << max(12, (int(rest) - 1).bit_length())]:
    part = np.zeros(size, np.uint8)
    mine = np.frombuffer(content[len(told) : len(told) + size], np.uint8)
    part[: len(mine)] = mine
    told += np.asarray(multihost_utils.broadcast_one_to_all(part)).tobytes()
  return bytes(told)


def all_say(here: bool) -> list[bool]:
  """What each process finds, in order."""
  return (
    [here]
    if jax.process_count() == 1
    else [bool(found) for found in multihost_utils.process_allgather(np.array(here))]
  )


def check_alike(own: object, what: str) -> None:
  """Whether all processes have the same of something, as each tells its own.

  Raises:
    InputError: one has not.
  """
  alike = all_say(own == first_tells(lambda: own))
  if not all(alike):
    raise InputError(
      f"process {alike.index(False)} has other {what} than process 0; give all of them the same"
    )


def all_or_none(look: Callable[[], T]) -> T:
  """What each process finds by itself, if none of them meets wrong input; else all raise
  InputError, the others naming the one that did.
  """
  complaint: InputError | None = None
  found: T | None = None
  try:
    found = look()
  except InputError as error:
    complaint = error
  fine = all_say(complaint is None)
  if complaint is not None:
    raise complaint
  if not all(fine):
    raise InputError(f"process {fine.index(False)} has found wrong input; see what it says")
  return cast(T, found)


def stop_asked() -> bool:
  """Whether to stop here because a signal came, to this process or any other: true in all processes
  at the same look, and only once.

  Must be called equally often in every process.
  """
  if jax.distributed.is_initialized():
    return bool(multihost_utils.reached_preemption_sync_point(next(_looks)))
  return _asked.is_set()


def stop_if_asked() -> None:
  """Stops where there is nothing to save.

  Raises:
    Stopped: see stop_asked.
  """
  if stop_asked():
    raise Stopped
