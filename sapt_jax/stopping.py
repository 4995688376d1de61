"""What a signal does before a run can save anything. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

# Whether --fresh or --from-task has removed what this run had learned: the program's own, as
# signals are.
removed = False


def again() -> str:
  """How a run that was stopped is continued, in words."""
  if not removed:
    return "the same command continues this run"
  words = "to continue this run, give the same command without --fresh and --from-task"
  in_job = "; SLURM may start this job again as it is"
  return words + (in_job if "SLURM_JOB_ID" in os.environ else "")


def end_at_once_if_asked() -> None:
  """Has SIGTERM and Ctrl-C end this process at once, with a line and the exit code of a stop, until
  a run listens to them itself, and the second one after that (processes.py).

  The first second of a run goes into imports. One that is preempted then would end as if nobody
  should start it again.
  """

  def end(number: int, _: object) -> NoReturn:
    said = f"stopped: at once, as asked; what was saved before is there; {again()}\n"
    os.write(2, said.encode())  # not print: what the signal came into may be printing
    os._exit(75)

  for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, end)
