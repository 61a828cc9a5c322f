"""The tasks of GLUE and SuperGLUE in seqio's registry. Imports TensorFlow: import it where it is needed."""

import atexit
import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from moe.data.quiet_import import quiet_import
from moe.data.tasks.glue import ELEVEN, HIDDEN, MIXTURE, TASKS, GlueTask, mark_pronoun
from moe.data.vocabulary import Vocabulary

with quiet_import():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

Features = Mapping[str, tf.Tensor]


class RegisteredTask(seqio.Task):
  """A task of GLUE or SuperGLUE for one vocabulary and one TFDS folder.

  Attributes:
    glue: what it is.
    made_for: the vocabulary and the folder.
  """

  def __init__(self, glue: GlueTask, vocabulary: Vocabulary, data_dir: str):
    self.glue, self.made_for = glue, _key(vocabulary, data_dir)
    feature = seqio.Feature(_seqio_vocabulary(vocabulary), add_eos=True)
    super().__init__(
      glue.name,
      source=_Source(glue, data_dir),
      preprocessors=[text_of(glue), seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
      output_features={"inputs": feature, "targets": feature},
      postprocess_fn=glue.postprocess_fn,
      metric_fns=glue.metric_fns,
    )

  def require_prepared(self) -> None:
    """Raises `ConfigError` unless the task's data set is in the TFDS folder."""
    folder = self.source.data_dir or tfds.core.constants.DATA_DIR
    self.glue.require_prepared(folder, "task", self.glue.name, tf.io.gfile.exists)


class _Source(seqio.TfdsDataSource):
  """The task's data set, whose splits have the task's names."""

  def __init__(self, glue: GlueTask, data_dir: str):
    self._names, self.data_dir = glue.splits, data_dir
    super().__init__(glue.dataset, tfds_data_dir=data_dir or None, read_only=True)

  @property
  def splits(self) -> tuple[str, ...]:
    ours = {theirs: name for name, theirs in self._names.items()}
    return tuple(ours.get(name, name) for name in super().splits)

  def get_dataset(self, split: str = "train", **options: Any) -> tf.data.Dataset:
    return super().get_dataset(split=self._theirs(split), **options)

  def list_shards(self, split: str) -> list[str]:
    return super().list_shards(self._theirs(split))

  def num_input_examples(self, split: str) -> int:
    return super().num_input_examples(self._theirs(split))

  def _theirs(self, split: str) -> str:
    """The data set's own name of a split or of a part of one, such as "validation[:10%]"."""
    whole, bracket, part = split.partition("[")
    return self._names.get(whole, whole) + bracket + part


def register(vocabulary: Vocabulary, data_dir: str) -> None:
  """Makes all tasks, and the mixture of eleven, known to seqio for this vocabulary and TFDS folder.

  They replace those for another; a user's own task of the same name stays.
  """
  changed = False
  for glue in TASKS.values():
    if glue.name in seqio.TaskRegistry.names():
      known = seqio.TaskRegistry.get(glue.name)
      if not isinstance(known, RegisteredTask) or known.made_for == _key(vocabulary, data_dir):
        continue
      seqio.TaskRegistry.remove(glue.name)
    seqio.TaskRegistry.add_provider(glue.name, RegisteredTask(glue, vocabulary, data_dir))
    changed = True
  if changed:
    seqio.MixtureRegistry.remove(MIXTURE)
    seqio.MixtureRegistry.add(MIXTURE, ELEVEN, default_rate=lambda task: float(task.num_input_examples("train")))


def _key(vocabulary: Vocabulary, data_dir: str) -> tuple[str, str, str]:
  return vocabulary.name, vocabulary.fingerprint, data_dir


def _seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
  if vocabulary.name == "bytes":
    return seqio.ByteVocabulary(vocabulary.extra_ids)
  path = _local_copy(vocabulary.model) if "://" in vocabulary.name else vocabulary.name
  return seqio.SentencePieceVocabulary(path, vocabulary.extra_ids)


@functools.cache
def _local_copy(model: bytes) -> str:
  """A file with this model, until the process ends: TensorFlow does not read all buckets that we do."""
  with tempfile.NamedTemporaryFile(suffix=".model", delete=False) as file:
    file.write(model)
  atexit.register(os.unlink, file.name)
  return file.name


def text_of(glue: GlueTask) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """The preprocessor from the data set's rows to texts.

  Its examples have `inputs` and `targets`, both text, the row's `label` and `idx` (flat, with "/" in nested names), and
  `empty`: whether no field has text. The targets of a hidden label are empty.
  """
  return seqio.map_over_dataset(_FORMATS.get(glue.name, _fields)(glue))


def _fields(glue: GlueTask) -> Callable[[Features], Features]:
  """The task's name, then each field after its own name; the label's text."""

  def convert(row: Features) -> Features:
    words = [glue.prefix or glue.name]
    for name in glue.fields:
      words += [f"{name}:", row[name]]
    inputs = tf.strings.join(words, separator=" ")
    return _example(glue, row, inputs, _label_text(glue, row["label"]))

  return convert


def _multirc(glue: GlueTask) -> Callable[[Features], Features]:
  """As above, without the markup of the paragraphs."""
  plain = _fields(glue)

  def convert(row: Features) -> Features:
    example = plain(row)
    text = tf.strings.regex_replace(example["inputs"], "<br>", " ")
    return {**example, "inputs": tf.strings.regex_replace(text, "</?b>", "")}

  return convert


def _stsb(glue: GlueTask) -> Callable[[Features], Features]:
  """Of the score, the nearest multiple of 0.2 as text."""
  plain = _fields(glue)

  def convert(row: Features) -> Features:
    score = row["label"]
    number = tf.where(score == HIDDEN, float(HIDDEN), tf.round(5 * score))
    return {**plain({**row, "label": tf.cast(number, tf.int64)}), "label": score}

  return convert


def _wsc(glue: GlueTask) -> Callable[[Features], Features]:
  """The text with the pronoun between asterisks, and the noun that the row proposes for it."""

  def convert(row: Features) -> Features:
    marked = tf.numpy_function(
      lambda *values: mark_pronoun(*values).encode(), [row["text"], row["span2_text"], row["span2_index"]], tf.string
    )
    inputs = tf.strings.join([f"{glue.name}:", tf.ensure_shape(marked, [])], separator=" ")
    return _example(glue, row, inputs, tf.reshape(row["span1_text"], []))

  return convert


_FORMATS = {"multirc": _multirc, "stsb": _stsb, "wsc": _wsc}


def _label_text(glue: GlueTask, label: tf.Tensor) -> tf.Tensor:
  return tf.where(label == HIDDEN, "", tf.gather(list(glue.labels), tf.maximum(label, 0)))


def _example(glue: GlueTask, row: Features, inputs: tf.Tensor, targets: tf.Tensor) -> Features:
  numbers = {"idx": row["idx"]}
  if isinstance(row["idx"], Mapping):
    numbers = {f"idx/{name}": value for name, value in row["idx"].items()}
  lengths = [tf.strings.length(tf.strings.strip(row[name])) for name in glue.fields]
  return {
    "inputs": inputs,
    "targets": targets,
    "label": row["label"],
    "empty": tf.reduce_all(tf.equal(lengths, 0)),
    **numbers,
  }
