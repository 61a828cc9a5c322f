"""Which devices communicate over which axis, and how long the links take."""

import types

import numpy as np
import pytest

from moe.planning import hlo
from moe.planning.collectives import Collective, axes, read_groups, seconds
from moe.planning.topology import Slice


def mesh(*sizes):
  """A mesh (data, expert, model) with the coordinates of a TPU slice of that shape."""
  devices = np.empty(sizes, object)
  for index in np.ndindex(*sizes):
    devices[index] = types.SimpleNamespace(coords=list(index))
  return types.SimpleNamespace(devices=devices, axis_names=("data", "expert", "model"))


def groups(text, devices=8):
  module = hlo.parse(f"ENTRY %m (x: f32[8]) -> f32[8] {{\n  %x = f32[8] parameter(0)\n  ROOT %r = f32[8] {text}\n}}")
  return read_groups(module.entry.root, devices).tolist()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("all-reduce(%x), replica_groups={}, to_apply=%f", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%f", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%f", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%f", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%f", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("all-reduce(%x), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%f", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("all-reduce(%x), replica_groups=mesh['a'=8] {'a':(4)2}, to_apply=%f", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    (
      "all-reduce(%x), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%f",
      [[0, 4], [1, 5], [2, 6], [3, 7]],
    ),
    ("collective-permute(%x), source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
  ],
)
def test_every_notation_of_groups(text, expected):
  assert groups(text) == expected


def test_another_notation_is_an_error_not_a_guess():
  with pytest.raises(ValueError, match="cannot read the groups"):
    groups("all-reduce(%x), replica_groups=everybody, to_apply=%f")


@pytest.mark.parametrize(
  ("members", "expected"),
  [
    ([[0, 4]], "data"),
    ([[0, 2], [1, 3]], "expert"),
    ([[0, 1]], "model"),
    ([[0, 1, 2, 3], [4, 5, 6, 7]], "expert+model"),
    ([[0, 1], [2, 4]], "data+expert+model"),
    ([[0], [1]], "none"),
  ],
)
def test_the_axes_are_those_along_which_members_differ(members, expected):
  assert axes(np.array(members), mesh(2, 2, 2)) == expected


CUBE = Slice("v4", (4, 4, 4))
LINK = CUBE.chip.link
ALONG = {  # of the 4 x 4 x 4 chips, those that differ along one, two or three dimensions
  1: np.arange(64).reshape(16, 4),
  2: np.arange(64).reshape(4, 16),
  3: np.arange(64)[None],
}


def time(kind, members, where=CUBE):
  return seconds(Collective(kind, 1_000_000, members, hidden=False), mesh(*where.shape), where) * LINK / 1e6


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_ring_uses_both_directions_of_every_dimension(dimensions):
  members = ALONG[dimensions]
  share = 1 - 1 / members.shape[1]
  assert time("all-gather", members) == pytest.approx(share / (2 * dimensions))
  assert time("reduce-scatter", members) == pytest.approx(share / (2 * dimensions))
  assert time("all-reduce", members) == pytest.approx(2 * share / (2 * dimensions))


def test_without_the_last_link_a_line_has_one_direction():
  line = Slice("v4", (2, 2, 1))
  assert time("all-gather", np.arange(4)[None], line) == pytest.approx(0.75 / 2)


def test_an_all_to_all_is_limited_by_the_links_across_the_middle():
  """In a ring of 4, two chips send half of their bytes to the other two, over two links each way."""
  across = 2 * 0.5 / 2
  assert time("all-to-all", ALONG[1]) == pytest.approx(across)
  assert time("all-to-all", ALONG[3]) == pytest.approx(across)
  pod = Slice("v5e", (16, 16))
  devices = np.empty((16, 16, 1), object)
  for index in np.ndindex(16, 16):
    devices[(*index, 0)] = types.SimpleNamespace(coords=[*index, 0])
  flat = types.SimpleNamespace(devices=devices, axis_names=("data", "expert", "model"))
  found = seconds(Collective("all-to-all", 1_000_000, np.arange(256)[None], hidden=False), flat, pod)
  assert found * pod.chip.link / 1e6 == pytest.approx(8 * 0.5 / 2)


def test_a_permute_takes_the_shorter_way_round():
  assert time("collective-permute", np.array([[0, 1], [1, 0]])) == pytest.approx(1)
  assert time("collective-permute", np.array([[0, 2]])) == pytest.approx(2)
  assert time("collective-permute", np.array([[0, 3]])) == pytest.approx(1)


def test_a_group_of_one_sends_nothing():
  assert time("all-reduce", np.arange(64)[:, None]) == 0
