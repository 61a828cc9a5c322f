"""Models small enough for a test, with each kind of router."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.models import Batch, ModelConfig, MoEConfig, StackConfig
from moe.models.model_config import DepthConfig
from moe.routing import RouterConfig

ARCHITECTURES = ("encoder_decoder", "decoder")
VOCABULARY = 24


def router(name: str, **options) -> RouterConfig:
  return RouterConfig.choices[name](**options)


def stack(router: RouterConfig | None = None, layers: int = 2, depth: DepthConfig | None = None, **moe) -> StackConfig:
  """Every second layer is a MoE layer of four experts where there is a router; dense without one."""
  experts = MoEConfig(router=router, **({"num_experts": 4} | moe)) if router else None
  return StackConfig(layers=layers, moe=experts, depth=depth)


# Of one slot an expert, so that many choices find none.
TIGHT_SWITCH = router("switch", capacity_factor=0.5, eval_capacity_factor=0.5)
DROPLESS = router("token_choice", top_k=2, capacity_factor=None)
EXPERT_CHOICE = router("expert_choice")
CAUSAL = {"dense": None, "tight_switch": TIGHT_SWITCH, "dropless_top2": DROPLESS}


def config(
  architecture: str = "encoder_decoder",
  decoder: StackConfig | RouterConfig | None = None,
  encoder: StackConfig | RouterConfig | None = None,
  **changes,
) -> ModelConfig:
  """A small model; a router stands for `stack(router)`."""
  as_stack = lambda given: given if isinstance(given, StackConfig) else stack(given)  # noqa: E731
  per_architecture = {
    "encoder_decoder": {"encoder": as_stack(encoder)},
    "decoder": {"relative_bias": "per_layer"},
  }
  fields = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_ff": 24,
    "num_heads": 2,
    "d_head": 8,
    "decoder": as_stack(decoder),
  }
  return ModelConfig.choices[architecture](**(fields | per_architecture[architecture] | changes))


@functools.cache
def model(settings: ModelConfig, seed: int = 0) -> nnx.Module:
  return settings.make(nnx.Rngs(seed))


def logits(network: nnx.Module, batch: Batch) -> jax.Array:
  return output(network, batch).logits


def output(network: nnx.Module, batch: Batch):
  return _output(*nnx.split(network), batch)


@functools.partial(jax.jit, static_argnums=0)
def _output(graph, variables, batch):
  return nnx.merge(graph, variables)(batch, training=False)


def batch(rows: int = 2, targets: int = 8, inputs: int = 6, seed: int = 0) -> Batch:
  """One example a row, without padding, of random tokens other than padding and end."""
  return packed([[targets]] * rows, [[inputs]] * rows, seed)


def packed(target_lengths: list[list[int]], input_lengths: list[list[int]], seed: int = 0) -> Batch:
  """Rows of examples of the given lengths, then padding to the longest row."""
  random = np.random.default_rng(seed)
  arrays = {}
  for side, lengths in (("inputs", input_lengths), ("targets", target_lengths)):
    width = max(sum(row) for row in lengths)
    segments = np.zeros((len(lengths), width), np.int32)
    positions = np.zeros_like(segments)
    for i, row in enumerate(lengths):
      ends = np.cumsum([0, *row])
      for segment, (start, end) in enumerate(itertools.pairwise(ends), 1):
        segments[i, start:end], positions[i, start:end] = segment, np.arange(end - start)
    tokens = np.where(segments > 0, random.integers(2, VOCABULARY, segments.shape), 0)
    arrays |= {side: tokens, f"{side}_segments": segments, f"{side}_positions": positions}
  arrays["loss_weights"] = (arrays["targets_segments"] > 0).astype(np.float32)
  return {
    name: jnp.asarray(array, jnp.float32 if name == "loss_weights" else jnp.int32) for name, array in arrays.items()
  }
