"""What a signal does before a run can save anything. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

BEGIN_ANEW = ("--fresh", "--from-task", "--from_task")


def end_at_once_if_asked() -> None:
  """Has SIGTERM and Ctrl-C end this process at once, with a line and the exit code of a stop, until
  a run listens to them itself, and the second one after that (processes.py).

  The first second of a run goes into imports. One that is preempted then would end as if nobody
  should start it again.
  """

  def end(number: int, _: object) -> NoReturn:
    said = "stopped: at once, as asked; the same command goes on with what was saved"
    if any(given.startswith(BEGIN_ANEW) for given in sys.argv):
      said += ", if it is given without --fresh or --from-task"
    os.write(2, f"{said}\n".encode())  # not print: what the signal came into may be printing
    os._exit(75)

  for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, end)
