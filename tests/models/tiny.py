"""Models small enough for a test, with each kind of router."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.models import Batch, ModelConfig, make_model
from moe.routing import ROUTERS, RouterConfig

ARCHITECTURES = ("encoder_decoder", "decoder")
VOCABULARY = 24


def router(name: str, **options) -> RouterConfig:
  return RouterConfig(name, ROUTERS[name].Options(**options))


# Of one slot an expert, so that many choices find none.
TIGHT_SWITCH = router("switch", capacity_factor=0.5, eval_capacity_factor=0.5)
DROPLESS = router("token_choice", top_k=2, capacity_factor=None)
EXPERT_CHOICE = router("expert_choice")
CAUSAL = {"dense": None, "tight_switch": TIGHT_SWITCH, "dropless_top2": DROPLESS}


def config(
  architecture: str = "encoder_decoder",
  decoder_router: RouterConfig | None = None,
  encoder_router: RouterConfig | None = None,
  **changes,
) -> ModelConfig:
  """Two blocks a stack; the second is MoE where there is a router."""
  per_architecture = {
    "encoder_decoder": {"encoder_layers": 2},
    "decoder": {"relative_bias": "per_layer"},
  }
  fields = {
    "architecture": architecture,
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_ff": 24,
    "num_heads": 2,
    "d_head": 8,
    "decoder_layers": 2,
    "num_experts": 4 if decoder_router or encoder_router else 0,
    "encoder_router": encoder_router,
    "decoder_router": decoder_router,
  }
  return ModelConfig(**(fields | per_architecture[architecture] | changes))


@functools.cache
def model(settings: ModelConfig, seed: int = 0) -> nnx.Module:
  return make_model(settings, nnx.Rngs(seed))


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
