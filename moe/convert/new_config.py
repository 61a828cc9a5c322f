"""The config of a run that is made of another: the other's with some fields changed, and checks that these go together.

Nothing is read or computed here but shapes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from moe.config import Text, as_mapping, differences, in_section, override, require
from moe.convert.old_run import setup_of
from moe.convert.pruning import router_axes
from moe.convert.upcycling import upcycle_statistics
from moe.models import ModelConfig, MoEConfig
from moe.routing.router import router_shapes
from moe.training.experiment import ExperimentConfig, load_config

# Dotted names of a config's fields, and their values.
Fields = Iterable[tuple[str, Any]]

# Fields of the model that change no parameter, and of its MoE layers.
_FREE = ("dropout", "expert_dropout", "dtype", "remat", "auxiliary_losses", "logits_operands", "allow_future_leakage")
_FREE_OF_EXPERTS = ("router", "gate_scale")


def changed_config(old: ExperimentConfig, fields: Fields) -> ExperimentConfig:
  """The config with some fields replaced; the run begins with its own checkpoint, whatever the old one began with.

  Raises:
    ConfigError: a wrong field; experts that the config's mesh does not divide; or parameters to be frozen that are no
      longer there.
  """
  new = load_config(override(as_mapping(old), [("init", None), *fields]))
  axis = new.mesh.expert
  for name, moe in experts_of(new.model).items():
    wanted = f"expected a multiple of config.mesh.expert = {axis}"
    require(axis < 1 or moe.num_experts % axis == 0, f"config.model.{name}.moe.num_experts", moe.num_experts, wanted)
  setup_of(new)
  return new


def upcycled_config(old: ExperimentConfig, fields: Fields) -> ExperimentConfig:
  """The config of a dense run with experts, of the dense network's activation and biases unless others are given.

  Raises:
    ConfigError: a wrong field; the fields make no experts, or such as are not like the dense network.
  """
  given, model = list(fields), old.model
  tree = override(as_mapping(old), given)
  moes = {name: _at(tree, "model", name, "moe") for name in model.stacks}
  made = {name: moe for name, moe in moes.items() if isinstance(moe, Mapping)}
  alike = {"feed_forward": model.feed_forward, "bias": model.bias}
  silent = [(f"model.{name}.moe.{field}", alike[field]) for name, moe in made.items() for field in alike.keys() - moe]
  new = changed_config(old, given + silent)
  wanted = "expected the fields of its experts, or those of another stack"
  require(bool(experts_of(new.model)), f"config.model.{next(iter(model.stacks))}.moe", None, wanted)
  check_model(_without_experts(new.model), model)
  _check_networks(new.model)
  return new


def dense_config(old: ExperimentConfig, fields: Fields) -> ExperimentConfig:
  """The config of a run without its experts.

  Raises:
    ConfigError: a wrong field; or the experts are not like a dense network.
  """
  sparse = experts_of(old.model)
  for name, moe in sparse.items():
    wanted = f"expected {old.model.bias}, as of the dense network that it becomes"
    require(moe.bias == old.model.bias, f"config.model.{name}.moe.bias", moe.bias, wanted)
  _check_networks(old.model)
  new = changed_config(old, [*((f"model.{name}.moe", None) for name in sparse), *fields])
  check_model(new.model, _without_experts(old.model))
  return new


def pruned_config(old: ExperimentConfig, fields: Fields, keep: int) -> ExperimentConfig:
  """The config of a run with `keep` experts per MoE layer.

  Raises:
    ConfigError: a wrong field; or a router that does not go with so few experts, or from which none can be removed.
  """
  stacks: Any = {}
  for name, moe in experts_of(old.model).items():
    with in_section(f"config.model.{name}.moe.router"):
      router_axes(moe.router, old.model.site(moe))
    stacks[name] = dataclasses.replace(old.model.stacks[name], moe=dataclasses.replace(moe, num_experts=keep))
  new = changed_config(old, [*((f"model.{name}.moe.num_experts", keep) for name in stacks), *fields])
  check_model(new.model, dataclasses.replace(old.model, **stacks))
  return new


def grown_config(old: ExperimentConfig, fields: Fields) -> ExperimentConfig:
  """The config of a run with more experts in the MoE layers of some stacks.

  Raises:
    ConfigError: a wrong field; fewer experts, or no more; or a router with which new experts change what the old ones
      do.
  """
  new, before = changed_config(old, fields), experts_of(old.model)
  after = experts_of(new.model)
  stacks: Any = {
    name: dataclasses.replace(old.model.stacks[name], moe=dataclasses.replace(moe, num_experts=after[name].num_experts))
    for name, moe in before.items()
    if name in after
  }
  check_model(new.model, dataclasses.replace(old.model, **stacks))
  for name, moe in before.items():
    given = after[name].num_experts
    wanted = f"expected at least {moe.num_experts}, the experts of the run it is made of"
    require(given >= moe.num_experts, f"config.model.{name}.moe.num_experts", given, wanted)
  grown = [name for name, moe in before.items() if after[name].num_experts > moe.num_experts]
  name, fewest = next((name, moe.num_experts) for name, moe in before.items())
  wanted = f"expected more than the {fewest} experts there are, or more in another stack"
  require(bool(grown), f"config.model.{name}.moe.num_experts", fewest, wanted)
  for name in grown:
    router = after[name].router
    wanted = (
      "expected one that leaves old experts their tokens and weights when new ones come: with scores = 'sigmoid'"
      " loss_free, quantile_balanced, or deepseek_v3 with chosen_groups = expert_groups; relu, noisy_rectifier,"
      " stochastic_times_smooth, or threshold with gate = 'sigmoid', slack = None and renormalize = False; dropless"
    )
    require(router.growth is not None, f"config.model.{name}.moe.router.name", router.name, wanted)
  return new


def check_model(model: ModelConfig, expected: ModelConfig) -> None:
  """Raises `ConfigError` unless a model has the parameters, and the routers' states, of the expected one."""
  free = {f"config.model.{name}" for name in _FREE}
  free_of = tuple(f"config.model.{name}.moe.{field}" for name in expected.stacks for field in _FREE_OF_EXPERTS)
  for field, (old, new) in differences(as_mapping(expected), as_mapping(model), "config.model").items():
    wanted = "experts" if isinstance(old, Mapping) else repr(old)
    require(field in free or field.startswith(free_of), field, new, f"expected {wanted}, as in the run it is made of")
  for name, moe in experts_of(expected).items():
    site, router = expected.site(moe), experts_of(model)[name].router
    wanted = f"expected a router with the parameters and the state of {moe.router.name}"
    alike = router_shapes(router, site) == router_shapes(moe.router, site)
    alike = alike and router.free_experts == moe.router.free_experts
    require(alike, f"config.model.{name}.moe.router.name", router.name, wanted)


def check_statistics(old: ExperimentConfig, new: ExperimentConfig) -> None:
  """Raises `ConfigError` unless the dense run's statistics of the optimizer are such as the upcycled run's needs."""
  begun, made, alike = (setup_of(config).abstract for config in (old, new, dataclasses.replace(new, model=old.model)))

  def moved() -> Any:
    move = lambda dense, fresh: upcycle_statistics(dense, fresh, begun.params, new.model)  # noqa: E731
    return jax.eval_shape(move, begun.opt_state, made.opt_state)

  same = _shapes(alike.opt_state) == _shapes(begun.opt_state) and _shapes(moved()) == _shapes(made.opt_state)
  wanted = "expected the dense run's optimizer, whose statistics are reused, or --fresh_optimizer"
  require(same, "config.optimizer.name", new.optimizer.name, wanted)


def experts_of(model: ModelConfig) -> dict[str, MoEConfig]:
  """The MoE layers of each stack that has some."""
  return {name: stack.moe for name, stack in model.stacks.items() if stack.moe is not None}


def _at(node: Any, *names: str) -> Any:
  """A section within a tree; any of them may be text, of a command line."""
  for name in names:
    node = node.read() if isinstance(node, Text) else node
    node = node.get(name) if isinstance(node, Mapping) else None
  return node.read() if isinstance(node, Text) else node


def _without_experts(model: ModelConfig) -> ModelConfig:
  dense: Any = {name: dataclasses.replace(stack, moe=None) for name, stack in model.stacks.items()}
  return dataclasses.replace(model, **dense)


def _check_networks(model: ModelConfig) -> None:
  """Raises `ConfigError` unless each expert is like a dense feed-forward network, and there are no others beside."""
  for name, moe in experts_of(model).items():
    with in_section(f"config.model.{name}.moe"):
      require(moe.d_ff in (0, model.d_ff), "d_ff", moe.d_ff, f"expected {model.d_ff}, as of the dense network, or 0")
      form = moe.feed_forward
      require(form == model.feed_forward, "feed_forward", form, f"expected {model.feed_forward!r}, as of the dense one")
      require(moe.bias or not model.bias, "bias", moe.bias, "expected True: the dense network has biases")
      shared = moe.shared_experts
      require(shared == 0, "shared_experts", shared, "expected 0: a layer's one dense network goes with routed experts")
      wanted = "expected a router without zero, copy and constant experts, which are like no dense network"
      require(moe.router.free_experts is None, "router.name", moe.router.name, wanted)


def _shapes(tree: Any) -> tuple[Any, ...]:
  """What two states have in common if one can stand for the other."""
  return jax.tree.structure(tree), [(np.shape(leaf), np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
