"""What the model reads and predicts, as the batches have it."""

import numpy as np
import pytest

from moe.data import make_pipeline, make_source, make_vocabulary
from moe.data.documents import Documents, Ragged
from moe.data.objectives.span_corruption import Noise
from moe.data.objectives.text_to_text import PairExamples
from moe.data.sources.text import TextConfig
from tests.data.conftest import make_config, segments, write_json_lines
from tests.data.test_span_corruption import merge


@pytest.fixture
def long_text(tmp_path) -> str:
  """One document that is exactly ten full windows of 40 tokens, EOS included."""
  write_json_lines(tmp_path / "long.jsonl", [{"text": "x" * 399, "split": "train"}])
  return str(tmp_path / "long.jsonl")


def one_pass(config, row_format="inputs_and_targets", split="train") -> list[dict]:
  with make_pipeline(config, row_format, split, training=False) as pipeline:
    return list(pipeline)


def documents(config, split="train") -> list[list[int]]:
  source = make_source(config, split, make_vocabulary(config))
  blocks = [block for shard in range(source.num_shards) for block in source.blocks(shard, 0, 0)]
  return [block.targets[i].tolist() for block in blocks for i in range(len(block))]


def naive_windows(config, longest: int, shortest: int, eos: bool) -> list[list[int]]:
  found = []
  for document in documents(config):
    ids = document + [1] * eos
    while len(ids) > longest:
      end = longest - 1 if longest < len(ids) < longest + shortest else longest
      found.append(ids[:end])
      ids = ids[end:]
    if len(ids) >= shortest:
      found.append(ids)
  return sorted(found)


def test_a_causal_pass_has_every_token_and_eos_exactly_once(corpus):
  config = make_config(TextConfig(corpus), objective="causal_lm", inputs_length=0)
  batches = one_pass(config, "targets")
  found = [ids for batch in batches for ids in segments(batch, "targets")]
  assert sorted(found) == naive_windows(config, 16, 1, eos=True)
  for batch in batches:
    np.testing.assert_array_equal(batch["loss_weights"], batch["targets_segments"] > 0)
    assert set(batch) == {"targets", "targets_positions", "targets_segments", "loss_weights"}


def test_a_prefix_pass_has_every_window_once_in_two_parts(corpus):
  config = make_config(TextConfig(corpus))
  joined = []
  for batch in one_pass(config):
    parts = zip(segments(batch, "inputs"), segments(batch, "targets"), strict=True)
    joined += [inputs + targets for inputs, targets in parts]
    assert all(len(inputs) > 0 for inputs in segments(batch, "inputs"))
  assert sorted(joined) == naive_windows(config, 24 + 16, 2, eos=True)


def test_full_prefix_windows_have_no_padding_and_every_target_has_loss(long_text):
  batches = one_pass(make_config(TextConfig(long_text), batch_size=5))
  assert len(batches) == 2
  for batch in batches:
    assert (batch["inputs_segments"] == 1).all()
    assert (batch["targets_segments"] == 1).all()
    assert (batch["loss_weights"] == 1).all()


def test_the_split_of_a_short_window_is_uniform_among_all_that_fit(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", ({"text": "x" * 19, "split": "train"} for _ in range(4000)))
  config = make_config(TextConfig(str(tmp_path / "a.jsonl")), inputs_length=12, targets_length=16, batch_size=500)
  lengths = [len(inputs) for batch in one_pass(config) for inputs in segments(batch, "inputs")]
  # 20 tokens: at least 4 must be read for 16 to be predicted, and at most 12 can be read.
  counts = np.bincount(lengths)
  assert len(lengths) == 4000
  assert counts[:4].sum() == 0 and len(counts) == 13
  assert (abs(counts[4:] - 4000 / 9) < 5 * (4000 / 9) ** 0.5).all()


def test_a_row_of_one_sequence_has_both_parts_and_loss_only_on_the_second(corpus):
  config = make_config(TextConfig(corpus), pack=False)
  for apart, joined in zip(one_pass(config), one_pass(config, "targets"), strict=True):
    for row, (inputs, targets) in enumerate(zip(segments(apart, "inputs"), segments(apart, "targets"), strict=True)):
      ids = joined["targets"][row, : len(inputs) + len(targets)]
      weights = joined["loss_weights"][row, : len(ids)]
      assert ids.tolist() == inputs + targets
      assert weights.tolist() == [0] * len(inputs) + [1] * len(targets)
      assert not joined["loss_weights"][row, len(ids) :].any()


def test_both_row_formats_have_loss_on_the_same_number_of_tokens(corpus):
  config = make_config(TextConfig(corpus))
  totals = [
    sum(batch["loss_weights"].sum() for batch in one_pass(config, format))
    for format in ("inputs_and_targets", "targets")
  ]
  assert totals[0] == totals[1] > 0


def test_span_corruption_loses_nothing_and_ends_both_sides_with_eos(corpus):
  config = make_config(TextConfig(corpus), objective="span_corruption", inputs_length=64, targets_length=20)
  first = make_vocabulary(config).size - 1
  merged = []
  for batch in one_pass(config):
    for inputs, targets in zip(segments(batch, "inputs"), segments(batch, "targets"), strict=True):
      assert inputs[-1] == targets[-1] == 1
      assert targets[0] == first == 358
      renamed = [np.array(part[:-1]) + 999 - first for part in (inputs, targets)]
      merged.append((np.array(merge(*renamed, 100)) - 999 + first).tolist())
  assert sorted(merged) == naive_windows(config, Noise(0.15, 3.0).window(64), 2, eos=False)


def test_full_span_corruption_windows_fill_t5s_lengths(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "x" * 568 * 4, "split": "train"}])
  changes = {"objective": "span_corruption", "inputs_length": 512, "targets_length": 114}
  (batch,) = one_pass(make_config(TextConfig(str(tmp_path / "a.jsonl")), **changes))
  assert (batch["inputs_segments"] == 1).all()
  assert (batch["targets_segments"] == 1).all()


def test_every_epoch_draws_other_spans(long_text):
  config = make_config(
    TextConfig(long_text), objective="span_corruption", inputs_length=65, targets_length=20, batch_size=6, shuffle=False
  )
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    first, second = next(pipeline), next(pipeline)
  assert (first["inputs"] != second["inputs"]).any()


def test_pairs_are_trimmed_to_leave_room_for_eos():
  pairs = [([5] * 3, [6] * 2), ([5] * 9, [6] * 9), ([], [6]), ([5], [])]
  columns = ([np.array(pair[i], np.int32) for pair in pairs] for i in (0, 1))
  inputs, targets = map(Ragged.join, columns)
  examples = PairExamples(Documents(targets, inputs), 6, 4)
  found = [tuple(part.tolist() for part in examples[i]) for i in range(4)]
  assert found == [
    ([5, 5, 5, 1], [6, 6, 1]),
    ([5, 5, 5, 5, 5, 1], [6, 6, 6, 1]),
    ([1], [6, 1]),
    ([5, 1], [1]),
  ]
  assert examples.lengths.tolist() == [[len(a), len(b)] for a, b in found]


SHORT, LONG = "abcdefgh", "abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize(
  ("objective", "inputs_length", "row_format", "read"),
  [
    ("causal_lm", 0, "targets", LONG[-16:]),
    ("prefix_lm", 24, "inputs_and_targets", LONG[-24:]),
    ("prefix_lm", 24, "targets", LONG[-24:]),
    ("span_corruption", 24, "inputs_and_targets", LONG[:23] + "$"),
    ("text_to_text", 24, "inputs_and_targets", LONG[:23] + "$"),
    ("text_to_text", 24, "targets", LONG[:23] + "$"),
  ],
)
def test_prompts_end_and_are_cut_as_inputs_of_training(objective, inputs_length, row_format, read):
  """$ stands for EOS."""
  config = make_config("standard_library", objective=objective, inputs_length=inputs_length)
  vocabulary, shape = make_vocabulary(config), config.row_shape(row_format)

  def prompt(text: str) -> list[int]:
    return config.objective.prompt(vocabulary.encode(text), shape).tolist()

  def expected(text: str) -> list[int]:
    return [1 if letter == "$" else ord(letter) + 3 for letter in text]

  assert prompt(LONG) == expected(read)
  assert prompt(SHORT) == expected(SHORT + "$" * read.endswith("$"))
  assert prompt("") == expected("$" * read.endswith("$"))


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_a_prompt_is_what_training_reads_of_a_pair(text):
  config = make_config("standard_library", objective="text_to_text", inputs_length=12)
  ids = make_vocabulary(config).encode(text)
  examples = PairExamples(Documents(Ragged.join([ids[:1]]), Ragged.join([ids])), 12, 16)
  np.testing.assert_array_equal(config.objective.prompt(ids, config.row_shape("inputs_and_targets")), examples[0][0])
