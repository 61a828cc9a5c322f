"""What the README shows is what the repository does."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import build
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.expert_choice import ExpertChoice, ExpertChoiceConfig
from scripts.update_readme import measured_blocks, read_documents, updated_documents

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_its_figures_are_those_of_the_results_files():
  documents = read_documents()
  assert updated_documents(documents, measured_blocks()) == documents, "run python -m scripts.update_readme"


def test_every_figure_of_the_documents_exists():
  for path, text in read_documents().items():
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", text):
      assert ((ROOT / path).parent / figure).exists(), (path, figure)


def test_its_layer_alone_runs(capsys):
  example, _ = EXAMPLES
  names = {}
  exec(example, names)
  assert names["y"].shape == names["x"].shape == (4, 128, 64)
  assert names["weights"].shape == (4, 128, 8)
  assert (np.asarray(names["weights"] > 0).sum(1) == 32).all()  # capacity factor 2: 2 * 128 / 8 tokens per expert
  assert len(example.splitlines()) <= 14 and capsys.readouterr().out


def test_its_router_can_be_chosen_by_name_and_fills_every_expert():
  _, example = EXAMPLES
  names = {
    "ExpertChoice": ExpertChoice,
    "ExpertChoiceConfig": ExpertChoiceConfig,
    "dataclasses": dataclasses,
    "jax": jax,
  }
  try:
    exec(example, names)
    config = build(RouterConfig, {"name": "random_choice", "capacity_factor": 1.0}, "router")
    router = config.make(Site(8, 4), rngs=nnx.Rngs(0))
    inputs = RouterInput(jnp.ones((2, 12, 8)), jnp.ones((2, 12), bool))
    found = nnx.jit(lambda router: router(inputs, training=False).routing)(router)
    assert found.token.shape == (2, 4, 3)
    assert all(len(set(expert)) == 3 for expert in np.asarray(found.token).reshape(-1, 3).tolist())
  finally:
    del RouterConfig.choices["random_choice"]  # other tests go through all routers
