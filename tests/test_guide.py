"""What single pages of the documents promise beyond that their blocks run."""

import dataclasses
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import quickstart
from moe.config import ConfigError, build
from moe.data import DataConfig
from moe.models import ModelConfig, MoEConfig
from moe.parallel.mesh import MeshConfig
from moe.report.sections import SECTIONS
from moe.routing import RaggedRouting, RouterConfig, RouterInput, Site, SlotRouting
from moe.studies.arms import given_arm, parse_arm
from moe.training.experiment import TrainConfig, load_config
from tests.routing.naive import make, random_tokens, route, token_weights
from tests.test_docs import COMMANDS, python_blocks

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROUTER = (DOCS / "guide" / "add_a_router.md").read_text()
STUDIES = (DOCS / "studies.md").read_text()


def test_the_readme_is_read_in_one_screen_and_a_half():
  prose, table = (ROOT / "README.md").read_text().split("## Replications of published claims\n")
  others = table.partition("<!-- /studies -->")[2]  # the table grows with each study
  assert len((prose + others).splitlines()) < 90


def test_the_layer_alone_takes_ten_lines_and_chooses_as_expert_choice_does(capsys):
  example = python_blocks((DOCS / "guide" / "from_python.md").read_text())[0]
  names = {}
  exec(example, names)
  assert names["y"].shape == names["x"].shape == (4, 128, 64)
  assert names["weights"].shape == (4, 128, 8)
  assert (np.asarray(names["weights"] > 0).sum(1) == 32).all()  # capacity factor 2: 2 * 128 / 8 tokens per expert
  assert len(example.splitlines()) <= 14 and capsys.readouterr().out


@pytest.fixture
def new_routers(monkeypatch):
  """The names that a test registers are unknown again afterwards: other tests go through all routers."""
  monkeypatch.setattr(RouterConfig, "choices", dict(RouterConfig.choices))


def test_the_shortest_router_can_be_chosen_by_name_and_fills_every_expert(new_routers):
  exec(python_blocks(ROUTER)[0], {})
  config = build(RouterConfig, {"name": "random_choice", "capacity_factor": 1.0}, "router")
  router = config.make(Site(8, 4), rngs=nnx.Rngs(0))
  inputs = RouterInput(jnp.ones((2, 12, 8)), jnp.ones((2, 12), bool))
  found = nnx.jit(lambda router: router(inputs, training=False).routing)(router)
  assert found.token.shape == (2, 4, 3)
  assert all(len(set(expert)) == 3 for expert in np.asarray(found.token).reshape(-1, 3).tolist())


def test_the_router_can_be_chosen_by_name_dropless_and_with_slots():
  tokens = random_tokens(2, 16)
  dropless, slots = make("top_p"), make("top_p", capacity_factor=8.0)
  outputs = [route(router, tokens, training=True) for router in (dropless, slots)]
  assert [type(output.routing) for output in outputs] == [RaggedRouting, SlotRouting]
  weights = [np.nan_to_num(token_weights(output.routing, 16, 4)) for output in outputs]
  np.testing.assert_allclose(*weights, rtol=1e-6)
  assert ((weights[0] > 0).sum(-1) >= 1).all() and (weights[0].sum(-1) >= 0.4 - 1e-6).all()
  assert float(outputs[0].auxiliary_loss) > 0
  assert jax.tree.leaves(outputs[0].losses)[0] > 0


def test_a_wrong_option_is_the_line_that_the_page_shows():
  message = re.search(r"`config\.(.*?): (expected .*?)`", ROUTER)
  path, value = message[1].split(" = ")
  assert path == "model.encoder.moe.router.p"
  stack = {"layers": 2, "moe": {"num_experts": 4, "router": {"name": "top_p", "p": float(value)}}}
  sizes = {"vocab_size": 8, "d_model": 4, "d_ff": 4, "num_heads": 1, "d_head": 4}
  with pytest.raises(ConfigError) as caught:
    build(ModelConfig, {"name": "encoder_decoder", **sizes, "encoder": stack, "decoder": {"layers": 2}}, "config.model")
  assert str(caught.value) == message[0].strip("`")


def test_the_sections_of_a_report_are_those_that_it_has_in_their_order():
  sources = {make: inspect.getsource(make) for make in SECTIONS}
  shown = re.findall(r"^\| ([A-Z][^|]*?) \|", (DOCS / "guide" / "read_a_report.md").read_text(), flags=re.M)
  assert len(shown) == len(sources)
  for title, source in zip(shown, sources.values(), strict=True):
    assert f'ection("{title}"' in source, title


def fields_of(*sections: type) -> set[str]:
  return {field.name for section in sections for field in dataclasses.fields(section)}


def test_the_options_that_others_are_translated_to_exist():
  known = {
    "router": fields_of(*RouterConfig.choices.values()) | {"name"},
    "moe": fields_of(MoEConfig) | {"router"},
    "model": fields_of(*ModelConfig.choices.values()),
    "data": fields_of(DataConfig),
    "mesh": fields_of(MeshConfig),
    "train": fields_of(TrainConfig),
  }
  shown = re.findall(r"`(\w+)\.(\w+)[^`]*`", (DOCS / "guide" / "coming_from.md").read_text())
  found = [(section, field) for section, field in shown if section in known]
  assert len(found) > 50 and {section for section, _ in found} == set(known)
  for section, field in found:
    assert field in known[section], (section, field)


def test_an_error_of_the_first_run_is_the_line_that_the_page_shows():
  shown = re.search(r"`error: (config.*?)`", (DOCS / "guide" / "first_run.md").read_text())[1]
  tree = quickstart.get_config().to_dict()
  tree["model"]["encoder"]["moe"]["router"]["capacity_factor"] = 9.0
  with pytest.raises(ConfigError) as caught:
    load_config(tree)
  assert str(caught.value) == shown


def test_launching_shows_every_verb_from_create_to_delete():
  tpu = [words[3] for words in COMMANDS["docs/launching.md"] if words[2:3] == ["scripts.launch.tpu"]]
  assert tpu == ["create", "install", "start", "log", "delete", "resume"]


def test_the_arm_of_another_width_that_the_page_shows_is_one():
  (values,) = re.findall(r"`'(\{.*?\})'`", STUDIES)
  arm = given_arm(*parse_arm(f"mine={values}"))
  assert (arm.parts, arm.match) == (1, "total")


def test_the_page_on_studies_explains_them_in_less_than_ninety_lines():
  assert len(STUDIES.partition("## Results")[0].splitlines()) < 90
