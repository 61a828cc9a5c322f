"""Windows cover each document, in order, without loss or overlap."""

import numpy as np
import pytest

from moe.data.documents import Ragged
from moe.data.windows import cut_windows

LENGTHS = [*range(0, 30), 100]


def make_documents() -> list[np.ndarray]:
  return [np.arange(n) + 1000 * (n + 1) for n in LENGTHS]


@pytest.mark.parametrize("longest", [3, 7, 10])
@pytest.mark.parametrize("shortest", [1, 2])
@pytest.mark.parametrize("eos", [False, True])
def test_the_windows_of_a_document_join_to_the_document(longest, shortest, eos):
  documents = make_documents()
  windows = cut_windows(Ragged.join(documents), longest, shortest, eos)
  for number, document in enumerate(documents):
    expected = [*document, 1] if eos else list(document)
    if len(document) == 0 or len(expected) < shortest:
      expected = []
    parts = [windows.tokens(i) for i in np.flatnonzero(windows.document == number)]
    assert np.concatenate([[], *parts]).tolist() == expected


@pytest.mark.parametrize("shortest", [1, 2])
def test_windows_are_as_long_as_they_say_and_within_bounds(shortest):
  windows = cut_windows(Ragged.join(make_documents()), 7, shortest, True)
  lengths = np.array([len(windows.tokens(i)) for i in range(len(windows))])
  np.testing.assert_array_equal(lengths, windows.length)
  assert lengths.min() >= shortest and lengths.max() == 7


def test_only_the_last_two_windows_of_a_document_are_not_full():
  windows = cut_windows(Ragged.join([np.arange(22)]), 7, 2, False)
  assert windows.length.tolist() == [7, 7, 6, 2]
