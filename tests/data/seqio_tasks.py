"""Tiny seqio tasks, registered when a config names this module."""

import functools

import seqio
import tensorflow as tf

from tests.data.conftest import make_texts

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
PLAIN = {"targets": seqio.Feature(VOCABULARY, add_eos=False)}
PAIRS = {"inputs": seqio.Feature(VOCABULARY, add_eos=True), "targets": seqio.Feature(VOCABULARY, add_eos=True)}


def lines(split: str, shuffle_files: bool) -> tf.data.Dataset:
  assert not shuffle_files, "sources are read in order"
  return tf.data.Dataset.from_tensor_slices({"targets": make_texts(36 if split == "train" else 7)})


def pairs(split: str, shuffle_files: bool) -> tf.data.Dataset:
  del split, shuffle_files
  numbers = [str(n) for n in range(30)]
  return tf.data.Dataset.from_tensor_slices({"inputs": [f"square {n}" for n in numbers], "targets": numbers})


@functools.partial(seqio.map_over_dataset, num_seeds=1)
def add_noise(example, seed):
  """Appends a random digit: a preprocessor that differs from epoch to epoch."""
  digit = tf.random.stateless_uniform([], seed, 0, 10, tf.int32)
  return example | {"targets": example["targets"] + tf.strings.as_string(digit)}


def add(name: str, function, features, *preprocessors) -> None:
  source = seqio.FunctionDataSource(function, splits=("train", "validation"))
  steps = [*preprocessors, seqio.preprocessors.tokenize]
  seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=features)


add("moe_test_lines", lines, PLAIN)
add("moe_test_noisy", lines, PLAIN, add_noise)
add("moe_test_pairs", pairs, PAIRS)
seqio.TaskRegistry.add(
  "moe_test_eos",
  source=seqio.FunctionDataSource(lines, splits=("train",)),
  preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
  output_features={"targets": seqio.Feature(VOCABULARY, add_eos=True)},
)
seqio.MixtureRegistry.add("moe_test_mixture", ["moe_test_lines"], default_rate=1)
