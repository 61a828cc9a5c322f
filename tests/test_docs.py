"""The worked example of the documentation works, and passes the tests it shows."""

import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest

from moe.routing import ROUTERS, RaggedRouting, SlotRouting
from tests.routing.naive import make, random_tokens, route, token_weights

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "adding_a_router.md").read_text()


@pytest.fixture
def example(monkeypatch):
  """The two files of the page as modules; afterwards the router is unknown again."""
  monkeypatch.setattr(sys.modules["moe.routing.router"], "ROUTERS", ROUTERS)
  monkeypatch.setitem(ROUTERS, "top_p", None)
  del ROUTERS["top_p"]
  modules = []
  for name, source in zip(("moe.routing.top_p", "test_top_p"), re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, module.__dict__)
    modules.append(module)
  return modules


def test_the_tests_that_it_shows_pass(example):
  shown = [function for name, function in vars(example[1]).items() if name.startswith("test_")]
  assert len(shown) == 2
  for test in shown:
    test()


def test_the_router_can_be_chosen_by_name_dropless_and_with_slots(example):
  tokens = random_tokens(2, 16)
  dropless, slots = make("top_p"), make("top_p", capacity_factor=8.0)
  outputs = [route(router, tokens, training=True) for router in (dropless, slots)]
  assert [type(output.routing) for output in outputs] == [RaggedRouting, SlotRouting]
  weights = [np.nan_to_num(token_weights(output.routing, 16, 4)) for output in outputs]
  np.testing.assert_allclose(*weights, rtol=1e-6)
  assert ((weights[0] > 0).sum(-1) >= 1).all() and (weights[0].sum(-1) >= 0.4 - 1e-6).all()
  assert float(outputs[0].auxiliary_loss) > 0
  assert jax.tree.leaves(outputs[0].losses)[0] > 0
