"""The table of all routers, read from the code: paper, causality, losses, parameters and state of each."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import as_mapping
from moe.markdown import markdown_table
from moe.routing import Router, RouterConfig, RouterInput, RouterState, Site

# All different, so that shapes can be written with letters.
SITE = Site(d_model=24, num_experts=8, vocab_size=1009)
BATCH, LENGTH = 8, 112
LETTERS = {SITE.d_model: "d", SITE.num_experts: "E", SITE.vocab_size: "V"}
COSTS = ("time, x dense (budget)", "time, x dense (work)")
COLUMNS = ("router", "paper", "causal", "batch-independent", "auxiliary losses", "parameters", "state")


def router_rows() -> list[dict[str, str]]:
  """For every router a mapping from columns to texts, with its default options, in the order of the source files."""
  return [_row(config()) for config in sorted(RouterConfig.choices.values(), key=_source_line)]


def router_table(costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The lines of the table.

  Args:
    costs: by router, a row of `scripts.benchmarks.layer`, for the last columns: the experts per token that it asks for
      and computes, each with its time relative to a dense layer of so many.
  """

  def cells(row: dict[str, str]) -> list[str]:
    cost = costs.get(row["router"].strip("`"))
    pairs = [("budget", "ratio"), ("done", "work_ratio")]
    return [
      *(row[column] for column in COLUMNS),
      *("" if cost is None else f"{cost[ratio]:.2f} ({cost[experts]:.1f})" for experts, ratio in pairs),
    ]

  return markdown_table((*COLUMNS, *COSTS), map(cells, router_rows()))


def _source_line(config: type[RouterConfig]) -> tuple[str, int]:
  """The module and the line: in this order routers of one family are together."""
  return config.__module__, inspect.getsourcelines(config)[1]


def _row(config: RouterConfig) -> dict[str, str]:
  module = nnx.eval_shape(lambda: config.make(SITE, nnx.Rngs(0)))
  return {
    "router": f"`{config.name}`",
    "paper": config.paper,
    "causal": _in_modes(lambda training: config.is_causal(training=training)),
    "batch-independent": _in_modes(lambda training: config.is_batch_independent(LENGTH, training=training)),
    "auxiliary losses": _losses(config),
    "parameters": _shapes(module, nnx.Param),
    "state": _shapes(module, RouterState),
  }


def _in_modes(declared) -> str:
  modes = [mode for mode, training in (("training", True), ("evaluation", False)) if declared(training)]
  return {0: "no", 1: f"in {''.join(modes)}", 2: "yes"}[len(modes)]


def _losses(config: RouterConfig) -> str:
  """The losses that training adds by default; a router may report others with weight 0."""
  weights = as_mapping(config)
  groups = config.groups(BATCH, LENGTH)

  def route(tokens):
    router = config.make(SITE, nnx.Rngs(0))
    ids = jnp.ones((BATCH, LENGTH), jnp.int32)
    cut = [groups.cut(array) for array in (tokens, ids > 0, ids, ids)]
    return router(RouterInput(*cut, key=jax.random.key(0), length=LENGTH), training=True)

  output = jax.eval_shape(route, jnp.zeros((BATCH, LENGTH, SITE.d_model)))
  names = [name for name in output.losses if weights.get(f"{name}_loss", 1)]
  names += ["REINFORCE"] if output.policy is not None else []
  return ", ".join(names) or "-"


def _shapes(module: Router, kind: type[nnx.Variable]) -> str:
  found = nnx.to_flat_state(nnx.state(module, kind))
  return ", ".join(f"{path[-1]} {_letters(leaf.shape)}" for path, leaf in found) or "-"


def _letters(shape: tuple[int, ...]) -> str:
  return f"[{', '.join(LETTERS.get(size, str(size)) for size in shape)}]" if shape else "scalar"
