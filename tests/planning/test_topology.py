"""Names of slices, their meaning, and which names are refused."""

import pytest
from jax.experimental import topologies

from moe.config import ConfigError
from moe.planning.topology import CHIPS, Slice, devices, parse_slice


@pytest.mark.parametrize("generation", CHIPS)
def test_every_standard_slice_can_be_named(generation):
  for one in Slice(generation, CHIPS[generation].standard[0]).standard:
    assert parse_slice(one.name) == one


def test_a_name_gives_generation_and_shape():
  asked = parse_slice("v5p:8x8x8")
  assert (asked.generation, asked.shape, asked.chips) == ("v5p", (8, 8, 8), 512)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v9:2x2", "expected a generation of v4, v5e, v5p, v6e"),
    ("v5p-512", "expected a generation"),
    ("v5e", "expected a generation"),
    ("v4:8x8", "expected 3 dimensions; v4 has 2x2x1"),
    ("v5e:2x2x1", "expected 2 dimensions"),
    ("v6e:32x32", "expected 1 to 256 chips"),
    ("v5e:3x4", "expected whole hosts, of 2 x 2 chips"),
    ("v4:0x2x2", "expected 1 to"),
  ],
)
def test_a_slice_that_does_not_exist_is_refused(name, said):
  with pytest.raises(ConfigError, match=said):
    parse_slice(name)


def test_where_the_last_chip_is_linked_to_the_first():
  assert all(Slice("v4", (4, 4, 8)).wraps(axis) for axis in range(3))
  assert not any(Slice("v4", (2, 4, 4)).wraps(axis) for axis in range(3))
  assert [Slice("v5e", (8, 16)).wraps(axis) for axis in range(2)] == [False, True]


def test_peaks_are_what_the_matrix_units_do_in_a_cycle():
  cores_units_width = {"v4": (2, 4, 128), "v5e": (1, 4, 128), "v5p": (2, 4, 128), "v6e": (1, 4, 256)}
  for name, (cores, units, width) in cores_units_width.items():
    chip = CHIPS[name]
    assert chip.clock * cores * units * 2 * width**2 == pytest.approx(chip.flops, rel=0.01)


def test_a_missing_compiler_is_one_line(monkeypatch):
  def missing(*unused, **options):
    raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  with pytest.raises(ConfigError, match=r"expected the TPU compiler to be installed: pip install -e '.\[tpu\]'"):
    devices(parse_slice("v5e:2x4"))
