"""Span corruption: T5's published lengths, exact noise, and no token lost between inputs and targets."""

import numpy as np
import pytest

from moe.data.objectives.span_corruption import Noise, corrupt

T5 = Noise(0.15, 3.0)
FIRST_SENTINEL = 999


def merge(inputs: np.ndarray, targets: np.ndarray, sentinels: int) -> list[int]:
  """The window: each sentinel of the inputs replaced by what follows it in the targets."""
  spans, current = {}, None
  for token in targets.tolist():
    if token > FIRST_SENTINEL - sentinels:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  merged = []
  for token in inputs.tolist():
    merged += spans.pop(token) if token in spans else [token]
  assert not spans
  return merged


@pytest.mark.parametrize(
  ("noise", "inputs_length", "window", "targets_length"),
  [(T5, 512, 568, 114), (Noise(0.2, 2.0), 64, 70, 22), (Noise(0.2, 1.0), 64, 63, 27)],
)
def test_windows_and_targets_are_as_long_as_t5_publishes(noise, inputs_length, window, targets_length):
  assert noise.window(inputs_length) == window
  assert noise.lengths(window).tolist() == [inputs_length, targets_length]


@pytest.mark.parametrize("noise", [T5, Noise(0.5, 3.0), Noise(0.5, 1.0), Noise(0.8, 8.0)])
def test_a_shorter_window_never_needs_more_room(noise):
  lengths = noise.lengths(np.arange(2, noise.window(256) + 1))
  assert lengths[-1, 0] <= 256
  assert (np.diff(lengths, axis=0) >= 0).all()


@pytest.mark.parametrize("noise", [T5, Noise(0.5, 3.0), Noise(0.5, 1.0), Noise(0.8, 8.0)])
@pytest.mark.parametrize("length", [2, 3, 7, 20, 568])
def test_the_mask_has_exactly_the_tokens_and_spans_promised(noise, length):
  for seed in range(20):
    mask = noise.mask(length, np.random.default_rng(seed))
    assert mask.shape == (length,)
    assert mask.sum() == noise.tokens(length)
    assert np.diff(mask.astype(int), prepend=0).clip(0).sum() == noise.spans(length)


def test_the_noise_density_is_the_configs():
  assert T5.tokens(568) == 85
  assert T5.spans(568) == 28


@pytest.mark.parametrize("length", [2, 3, 20, 568])
def test_merging_inputs_and_targets_gives_back_the_window(length):
  tokens = np.random.default_rng(0).integers(3, 800, length)
  for seed in range(20):
    mask = T5.mask(length, np.random.default_rng(seed))
    inputs, targets = corrupt(tokens, mask, FIRST_SENTINEL)
    assert merge(inputs, targets, 100) == tokens.tolist()
    assert [len(inputs) + 1, len(targets) + 1] == T5.lengths(length).tolist()


def test_sentinels_go_down_from_the_top():
  mask = np.array([False, True, True, False, True])
  inputs, targets = corrupt(np.array([10, 11, 12, 13, 14]), mask, FIRST_SENTINEL)
  assert inputs.tolist() == [10, 999, 13, 998]
  assert targets.tolist() == [999, 11, 12, 998, 14]


def test_the_window_begins_with_a_kept_token_and_any_other_can_be_noise():
  often = np.mean([T5.mask(60, np.random.default_rng(seed)) for seed in range(2000)], axis=0)
  assert often[0] == 0
  assert (often[1:] > 0).all()
