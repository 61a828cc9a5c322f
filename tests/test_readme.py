"""What the README shows is what the repository does."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe import routing
from moe.routing.capacity import expert_choice_capacity
from moe.routing.methods.expert_choice import ExpertChoice, expert_choice
from moe.routing.metrics import routing_metrics
from scripts.update_readme import measured_blocks, read_documents, updated_documents

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_its_figures_are_those_of_the_results_files():
  documents = read_documents()
  assert updated_documents(documents, measured_blocks()) == documents, "run python -m scripts.update_readme"


def test_its_router_can_be_chosen_by_name_and_fills_every_expert(monkeypatch):
  (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
  names = {
    "ExpertChoice": ExpertChoice,
    "RouterInput": routing.RouterInput,
    "RouterOutput": routing.RouterOutput,
    "expert_choice": expert_choice,
    "expert_choice_capacity": expert_choice_capacity,
    "jax": jax,
    "jnp": jnp,
    "register": routing.register,
    "routing_metrics": routing_metrics,
  }
  # Registering is undone, for other tests go through all routers there are.
  monkeypatch.setitem(routing.ROUTERS, "random_choice", None)
  del routing.ROUTERS["random_choice"]
  exec(example, names)
  config = routing.RouterConfig.from_mapping({"name": "random_choice", "capacity_factor": 1.0}, "router")
  router = config.make(routing.Site(8, 4), rngs=nnx.Rngs(0))
  inputs = routing.RouterInput(jnp.ones((2, 12, 8)), jnp.ones((2, 12), bool))
  found = nnx.jit(lambda router: router(inputs, training=False).routing)(router)
  assert found.token.shape == (2, 4, 3)
  assert all(len(set(expert)) == 3 for expert in np.asarray(found.token).reshape(-1, 3).tolist())
