"""What a sweep compares."""

import argparse

import pytest

from moe.routing import RouterConfig
from scripts.benchmarks.layer import MOST_MASK_BYTES, SWEEPS, sweep_points

DEFAULTS = argparse.Namespace(
  tokens=4096,
  most_tokens=65_536,
  experts=16,
  most_experts=512,
  d_model=256,
  d_ff=1024,
  top_k=2,
  dtype="float32",
  only=sorted(RouterConfig.choices),
)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_all_its_layers_can_be_built_with_the_default_sizes(sweep):
  for _, cases in sweep_points(sweep, DEFAULTS):
    for case in cases.values():
      case.check()


@pytest.mark.parametrize(
  ("sweep", "expected"),
  [
    ("ways", [256, 1024, 4096, "any"]),
    ("groups", [256, 1024, 4096, 16_384, 65_536]),
    ("experts", [8, 32, 128, 512]),
    ("tokens", [1024, 4096, 16_384, 65_536]),
    ("routers", sorted(RouterConfig.choices)),
  ],
)
def test_its_points_span_the_range(sweep, expected):
  assert [at for at, _ in sweep_points(sweep, DEFAULTS)] == expected


def test_along_a_sweep_only_its_own_size_changes():
  def sizes(sweep):
    cases = [case for _, layers in sweep_points(sweep, DEFAULTS) for case in layers.values()]
    names = ("tokens", "sequence", "experts")
    return {name: len({getattr(case, name) for case in cases}) for name in names}

  assert sizes("groups") == {"tokens": 1, "sequence": 5, "experts": 1}
  assert sizes("experts") == {"tokens": 1, "sequence": 1, "experts": 4}
  assert sizes("tokens") == {"tokens": 4, "sequence": 1, "experts": 1}


def test_masks_are_left_out_where_they_would_not_fit():
  masked = {at: any(case.masks for case in cases.values()) for at, cases in sweep_points("groups", DEFAULTS)}
  assert masked == {256: True, 1024: True, 4096: False, 16_384: False, 65_536: False}
  assert 4 * 65_536 * 1024 * 2 <= MOST_MASK_BYTES < 4 * 65_536 * 4096 * 2
