"""The task `animals` for training: registered when a config names this module."""

import functools

import seqio
import tensorflow as tf

from tests.evaluation.scoring.tasks import LABELS, texts

VOCABULARY = seqio.ByteVocabulary(extra_ids=0)
FEATURE = seqio.Feature(VOCABULARY, add_eos=True)


def pairs(split: str, shuffle_files: bool, labels: int) -> tf.data.Dataset:
  """All pairs, those to train on twice: 90% of them are all of them too, so what is learnt shows in the scores."""
  assert not shuffle_files
  words = texts(12, 14)
  answers = [LABELS[number % labels] for number in range(len(words))]
  pairs = tf.data.Dataset.from_tensor_slices({"inputs": words, "targets": answers})
  return pairs.repeat(2) if split == "train" else pairs


for _name, _labels in (("animals", 3), ("animals_of_two", 2)):
  seqio.TaskRegistry.add(
    _name,
    source=seqio.FunctionDataSource(functools.partial(pairs, labels=_labels), splits=("train", "validation")),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={"inputs": FEATURE, "targets": FEATURE},
  )
