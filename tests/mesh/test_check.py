"""The check of a machine with several devices."""

import jax
import pytest

from moe.checks.agreement import agreement
from moe.checks.travel import KINDS, mesh_cases


def test_layers_are_checked_along_every_axis_of_the_mesh():
  names = [name.rsplit(" = ")[1] for name in mesh_cases(jax.devices())]
  assert sorted(set(names)) == ["1 x 1 x 8", "1 x 8 x 1", "2 x 4 x 1", "8 x 1 x 1"]
  assert all(names.count(shape) == len(KINDS) for shape in set(names))
  assert mesh_cases(jax.devices()[:1]) == {}


@pytest.mark.parametrize("kind", ["slots of a batch", "soft of a batch"])
def test_they_agree_with_one_cpu(kind):
  found = agreement(mesh_cases(jax.devices())[f"layer, {kind}, data x expert x model = 2 x 4 x 1"]())
  assert found.ok and found.error > 0, found
