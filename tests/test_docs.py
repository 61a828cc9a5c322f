"""The worked example of the documentation works, and passes the tests it shows; the commands of studies exist."""

import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.models import ModelConfig
from moe.routing import RaggedRouting, RouterConfig, SlotRouting
from moe.studies import Study
from moe.studies.arms import given_arm, parse_arm
from moe.studies.engine import parse_runner
from tests.routing.naive import make, random_tokens, route, token_weights

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_router.md").read_text()
STUDIES = (ROOT / "docs" / "studies.md").read_text()
COMMANDS = re.findall(r"^(?:    |`)python -m (moe\.\w+) ((?:\\\n|[^`\n])*)", STUDIES, flags=re.M)


@pytest.fixture
def example(monkeypatch):
  """The two files of the page as modules; afterwards the name is unknown again."""
  modules = []
  names = ("moe.routing.methods.top_p", "test_top_p")
  for name, source in zip(names, re.findall(r"```python\n(.*?)```", PAGE, flags=re.S), strict=True):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, module.__dict__)
    modules.append(module)
  yield modules
  del RouterConfig.choices["top_p"]


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


def test_a_wrong_option_is_the_line_that_the_page_shows(example):
  message = re.search(r"`config\.(.*?): (expected .*?)`", PAGE)
  path, value = message[1].split(" = ")
  assert path == "model.encoder.moe.router.p"
  stack = {"layers": 2, "moe": {"num_experts": 4, "router": {"name": "top_p", "p": float(value)}}}
  sizes = {"vocab_size": 8, "d_model": 4, "d_ff": 4, "num_heads": 1, "d_head": 4}
  with pytest.raises(ConfigError) as caught:
    build(ModelConfig, {"name": "encoder_decoder", **sizes, "encoder": stack, "decoder": {"layers": 2}}, "config.model")
  assert str(caught.value) == message[0].strip("`")


@functools.cache
def help_of(main: str) -> str:
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run([sys.executable, "-m", main, "--help"], env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("main", "arguments"), sorted(set(COMMANDS)))
def test_a_command_of_the_page_on_studies_names_flags_studies_budgets_and_arms_that_exist(main, arguments):
  words, given = shlex.split(arguments.replace("\\\n", " "), comments=True), {}
  while words:
    flag = words.pop(0)
    assert re.search(rf"^ *{flag}:|^ *--\[no\]{flag[2:]}:", help_of(main), flags=re.M), flag
    given[flag] = words.pop(0) if words and not words[0].startswith("--") else ""
  if main == "moe.study":
    assert given["--budget"] in Study.choices[given["--study"]].budgets
    parse_runner(given.get("--runner", "local"))
    for arm in filter(None, [given.get("--arm")]):
      given_arm(*parse_arm(arm))


def test_the_arm_of_another_width_that_the_page_shows_is_one():
  (values,) = re.findall(r"`'(\{.*?\})'`", STUDIES)
  arm = given_arm(*parse_arm(f"mine={values}"))
  assert (arm.parts, arm.match) == (1, "total")


def test_the_page_on_studies_explains_them_in_less_than_eighty_lines():
  assert len(STUDIES.partition("## Results")[0].splitlines()) < 80
