"""What is wrong with a file or a data set, in one line."""


class DataError(ValueError):
  """A file, directory or data set that cannot be used: its name, and what is wrong with it."""

  def __init__(self, name: object, problem: str):
    super().__init__(f"{name}: {problem}")
    self.name, self.problem = str(name), problem
