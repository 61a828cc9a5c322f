"""Data that cannot be used, reported in one line."""

from moe.config import UserError


class DataError(UserError, ValueError):
  """A file, directory or dataset that cannot be used: its name and the problem."""

  def __init__(self, name: object, problem: str):
    super().__init__(f"{name}: {problem}")
    self.name, self.problem = str(name), problem
