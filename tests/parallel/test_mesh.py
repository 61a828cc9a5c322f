import dataclasses
import itertools

import numpy as np
import pytest

from moe.config import ConfigError
from moe.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
  ("sizes", "devices", "shape"),
  [
    ({}, 8, (8, 1, 1)),
    ({"expert": 4}, 8, (2, 4, 1)),
    ({"data": 2, "expert": -1, "model": 2}, 16, (2, 4, 2)),
    ({"data": 1, "model": -1}, 3, (1, 1, 3)),
    ({"data": 2, "expert": 2, "model": 2}, 8, (2, 2, 2)),
  ],
)
def test_minus_one_fills_in_what_the_devices_leave(sizes, devices, shape):
  assert MeshConfig(**sizes).shape(devices) == shape


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"expert": 3}, "config.mesh = '-1 x 3 x 1': expected data x expert x model to be the number of devices, 8"),
    ({"data": 4, "expert": 4}, "config.mesh = '4 x 4 x 1': expected data x expert x model to be the number of devices"),
    ({"expert": 16}, "config.mesh = '-1 x 16 x 1'"),
  ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices_is_refused(sizes, message):
  with pytest.raises(ConfigError) as error:
    MeshConfig(**sizes).shape(8)
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(
  ("sizes", "field"), [({"expert": 0}, "expert"), ({"data": -2}, "data"), ({"model": -1}, "model")]
)
def test_sizes_that_mean_nothing_are_refused(sizes, field):
  with pytest.raises(ConfigError) as error:
    MeshConfig(**sizes)
  assert error.value.field == field


@dataclasses.dataclass(frozen=True)
class Device:
  """What the layout of a mesh looks at."""

  id: int
  slice_index: int
  process_index: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"


def slices(count: int, side: int = 2):
  """`count` TPU slices of side x side devices each."""
  places = itertools.product(range(count), range(side), range(side))
  return [
    Device(number, slice_index=part, process_index=part, coords=(x, y, 0)) for number, (part, x, y) in enumerate(places)
  ]


def test_only_data_crosses_slices():
  mesh = make_mesh(MeshConfig(data=4, expert=2), slices(2))
  index = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert mesh.shape == {"data": 4, "expert": 2, "model": 1}
  assert (index == index[:, :1]).all(), "a row of experts lies in one slice"
  assert set(index[:, 0, 0]) == {0, 1}


def test_data_must_be_divided_over_the_slices():
  with pytest.raises(ConfigError, match=r"config.mesh.data = 1: expected a multiple of the 2 slices"):
    make_mesh(MeshConfig(expert=-1, data=1), slices(2))
