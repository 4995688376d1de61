"""The errors that programs print as one line, and their exit codes (docs/cluster.md)."""


class InputError(ValueError):
  """Wrong input. The message names the thing, its value, and the way out, in one line.
  Exit code 2.
  """


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
  """The run was asked to stop (SIGTERM, Ctrl-C), has saved what it can, and will continue when it
  is started again. Exit code 75.

  Attributes:
    where: at which task and step it was, in words; empty: not known.
  """

  def __init__(self, where: str = ""):
    super().__init__(where)
    self.where = where

  def __str__(self) -> str:
    return f"as asked; {self.where}" if self.where else "as asked"


class FailedError(RuntimeError):
  """A run met something that it did not expect. The message names the run, where it was, and the
  file that the traceback is in. Exit code 1.
  """
