"""seqio tasks and TFDS datasets by name (Roberts et al. 2022, "Scaling Up Models and Data with t5x and seqio")."""

import dataclasses
from collections.abc import Mapping

from moe.config import require
from moe.data.source import Source, SourceConfig
from moe.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TaskConfig(SourceConfig, name="task"):
  """A registered seqio task or mixture, or else a TFDS dataset.

  The tasks of GLUE and SuperGLUE are registered (`moe/data/tasks/glue.py`), and the mixture "glue_super_glue_11".

  Attributes:
    task: its name, such as "c4/en:3.1.0".
    data_dir: the TFDS directory; empty for TFDS's default.
    text_key: the feature of a TFDS dataset that has the text.
    train_split: the task's name of the split "train", such as "train[:90%]".
    validation_split: the task's name of the split "validation".
    modules: Python modules to import first, because they register the task.
    cache_dirs: folders of tasks that seqio has cached (`seqio_cache_tasks`), which are then read from there.
  """

  task: str
  data_dir: str = ""
  text_key: str = "text"
  train_split: str = "train"
  validation_split: str = "validation"
  modules: tuple[str, ...] = ()
  cache_dirs: tuple[str, ...] = ()

  def __post_init__(self):
    require(bool(self.task.strip()), "task", self.task, "expected the name of a seqio task or of a TFDS dataset")

  @property
  def corpus(self) -> str:
    return self.task

  def split(self, name: str) -> str:
    """The task's name of a split."""
    return {"train": self.train_split, "validation": self.validation_split}.get(name, name)

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> Source:
    from moe.data.formats.seqio_registry import open_task  # imports TensorFlow

    return open_task(self, split, vocabulary, lengths, seed)
