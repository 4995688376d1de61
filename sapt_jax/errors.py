"""The one error that means "your input is wrong": programs print it as one line and end with exit code 2."""


class InputError(ValueError):
  """Wrong input. The message names the thing, its value, and the way out, in one line."""
