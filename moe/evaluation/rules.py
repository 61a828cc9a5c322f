"""The routing rules under which a decoder is evaluated: its own and, if that sees later tokens, a causal one."""

import dataclasses

import jax
from flax import nnx

from moe.data import DataConfig
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import Trained
from moe.models import ModelConfig
from moe.routing import RouterConfig
from moe.training.metrics_file import Record
from moe.training.state import split

MEANS = ("loss", "perplexity", "bits_per_byte", "accuracy")


def describe_rule(config: ModelConfig) -> dict[str, str | bool]:
  """The decoder's `router` (its name, or "dense"), and whether it is `causal` in evaluation and was in training."""
  router = config.decoder_router
  return {
    "router": "dense" if router is None else router.name,
    "causal": not config.evaluates_on_future,
    "trained_causally": not config.trains_on_future,
  }


def evaluate_by_rules(trained: Trained, data: DataConfig, split_name: str, batches: int = 0) -> Record:
  """`evaluate` under the run's own rule, with `rule`, its description by `describe_rule`.

  If that rule sees later tokens and has a causal twin, `causal_rule` holds the same of the twin, and `leak_nats` the
  loss under the twin minus the loss under the own rule: what the loss owes to the future and to the change of rule.

  Arguments and errors are those of `evaluate`.
  """
  result = evaluate(trained, data, split_name, batches) | {"rule": describe_rule(trained.config.model)}
  honest = under_causal_rule(trained)
  if honest is not None:
    found = evaluate(honest, data, split_name, batches) | {"rule": describe_rule(honest.config.model)}
    result["causal_rule"] = {name: found[name] for name in (*MEANS, "rule")}
    result["leak_nats"] = found["loss"] - result["loss"]
  return result


def causal_twin_of(config: ModelConfig) -> RouterConfig | None:
  """The causal twin of the decoder's router; None if there is no twin, or no need of one."""
  router = config.decoder_router
  return router.causal_twin() if router is not None and config.evaluates_on_future else None


def under_causal_rule(trained: Trained) -> Trained | None:
  """The same parameters with the router that `causal_twin_of` gives; None if there is none.

  State that only the twin has is initialised as in training.
  """
  router, twin = trained.config.model.decoder_router, causal_twin_of(trained.config.model)
  if twin is None:
    return None
  model = trained.config.model.with_decoder_router(twin)
  graph, params, router_state = split(nnx.eval_shape(lambda: model.make(nnx.Rngs(0))))
  shapes, wanted = ({k: v.shape for k, v in jax.tree.leaves_with_path(tree)} for tree in (trained.params, params))
  if shapes != wanted:
    raise ValueError(f"{twin.name} is not a twin of {router.name}: their parameters differ")
  if jax.tree.leaves(router_state):
    router_state = jax.jit(lambda: split(model.make(nnx.Rngs(0)))[2])()
    router_state |= {side: state for side, state in trained.router_state.items() if side != "decoder"}
  config = dataclasses.replace(trained.config, model=model)
  return dataclasses.replace(trained, config=config, graph=graph, router_state=router_state)
