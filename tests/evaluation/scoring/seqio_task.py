"""The task `animals` for training: registered when a config names this module."""

import functools

import seqio
import tensorflow as tf

from tests.evaluation.scoring.tasks import LABELS, texts

VOCABULARY = seqio.ByteVocabulary(extra_ids=0)
FEATURE = seqio.Feature(VOCABULARY, add_eos=True)


def pairs(split: str, shuffle_files: bool, labels: int) -> tf.data.Dataset:
  """All pairs on every split: what is learnt can then be seen in the scores."""
  assert split in ("train", "train[:90%]", "validation") and not shuffle_files
  words = texts(12, 14)
  answers = [LABELS[number % labels] for number in range(len(words))]
  return tf.data.Dataset.from_tensor_slices({"inputs": words, "targets": answers})


for _name, _labels in (("animals", 3), ("animals_of_two", 2)):
  seqio.TaskRegistry.add(
    _name,
    source=seqio.FunctionDataSource(functools.partial(pairs, labels=_labels), splits=("train", "validation")),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={"inputs": FEATURE, "targets": FEATURE},
  )
