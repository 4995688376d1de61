"""The errors that programs print as one line: "your input is wrong", exit code 2,
and "stopped as asked", exit code 75.
"""


class InputError(ValueError):
  """Wrong input. The message names the thing, its value, and the way out, in one line."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
  """The run was asked to stop (SIGTERM), has saved what it can,
  and will continue when it is started again.
  """
