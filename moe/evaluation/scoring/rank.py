"""Ranking: the log-likelihood of each of a task's labels after an input, EOS included, summed over its tokens.

An encoder reads an input once for all labels, and keys and values for the decoder's attention to it are computed once.
Logits, the larger part of what labels cost, are computed once for all labels that begin alike: their first tokens are
all predicted from the same state. A decoder too reads an input once, with all labels after it in the same row, each
blind to the others, if no router could tell: if it is dense or dropless. Others read the input again before each label.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from moe.models import Batch, ModelConfig
from moe.models.block import Context
from moe.models.decoder_stack import read_targets
from moe.parallel.mesh import replicated, tracing_for
from moe.parallel.programs import program
from moe.routing.top_k import TopKConfig
from moe.training.state import merge


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelTokens:
  """K labels, at most L tokens each.

  Attributes:
    ids: int32 `[K, L]`, zeros after the EOS.
    lengths: int32 `[K]`, EOS included.
    states: int32 `[U]`, the places, counted over `[K, L]`, whose states differ: labels that begin alike share theirs.
    state: int32 `[K, L]`, the one of these U that each token is predicted from.
  """

  ids: Any
  lengths: Any
  states: Any
  state: Any


def label_tokens(labels: Sequence[np.ndarray], length: int, *, causal: bool) -> LabelTokens:
  """The labels as arrays.

  Args:
    labels: int32 `[n]` of each, with its EOS.
    length: L, at least the longest.
    causal: whether a state never depends on later tokens, so that labels can share theirs.
  """
  ids = np.stack([np.pad(label, (0, length - len(label))) for label in labels]).astype(np.int32)
  found: dict[tuple[int, ...], int] = {}
  states: list[int] = []
  state = np.zeros_like(ids)
  for k, label in enumerate(labels):
    for j in range(len(label)):
      before = tuple(label[:j].tolist()) if causal else (-k, *label[:j].tolist())
      if before not in found:
        found[before] = len(states)
        states.append(k * length + j)
      state[k, j] = found[before]
  return LabelTokens(ids, np.array([len(label) for label in labels], np.int32), np.array(states, np.int32), state)


def make_ranker(config: ModelConfig, mesh: Mesh) -> Callable[[dict, dict, Batch, LabelTokens], jax.Array]:
  """The compiled `(params, router_state, inputs, labels) -> float32 [B, K]`, on every device.

  `inputs` are from `put_batch`: `inputs`, `inputs_positions`, `inputs_segments` `[B, M]`, one example per row.
  """

  def rank(params, router_state, inputs, labels):
    graph = nnx.split(nnx.eval_shape(lambda: config.make(nnx.Rngs(0))))[0]  # here, so that it is made once
    states = _states(config)
    model = merge(graph, params, router_state)
    with tracing_for(mesh):
      return _log_likelihoods(model, states(model, inputs, labels), labels)

  return program(("rank", config, mesh), lambda: jax.jit(rank, out_shardings=replicated(mesh)))


def _states(config: ModelConfig) -> Callable[[Any, Batch, LabelTokens], jax.Array]:
  """The function that computes the states `[B, K, L, d]` from which the labels' tokens are predicted."""
  if config.row_format == "inputs_and_targets":
    return _after_inputs
  router = config.decoder_router
  tokenwise = router is None or (isinstance(router, TopKConfig) and router.dropless)
  return _after_one_prompt if tokenwise else _after_prompts


def _log_likelihoods(model: Any, x: jax.Array, labels: LabelTokens) -> jax.Array:
  """`[B, K]` from the states `[B, K, L, d]`."""
  batch, count, length, width = x.shape
  different = x.reshape(batch, count * length, width)[:, labels.states]  # [B, U, d]
  logits = model.embedding.logits(different)  # [B, U, V]
  normaliser = jax.nn.logsumexp(logits, axis=-1)  # [B, U]
  each = logits[:, labels.state, labels.ids] - normaliser[:, labels.state]  # [B, K, L]
  return jnp.sum(each, axis=-1, where=_real(labels))


def _real(labels: LabelTokens) -> jax.Array:
  """Bool `[K, L]`, false for padding."""
  return jnp.arange(labels.ids.shape[1]) < labels.lengths[:, None]


def _after_inputs(model: Any, inputs: Batch, labels: LabelTokens) -> jax.Array:
  """Each label is a row of its own, and K consecutive ones read the same row of the encoder's output."""
  batch, (count, length) = inputs["inputs"].shape[0], labels.ids.shape
  real = (inputs["inputs_segments"][:, :1, None] > 0) & _real(labels)  # [B, K, L]

  def rows(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, real.shape).reshape(batch * count, length).astype(jnp.int32)

  targets = {"targets": labels.ids, "targets_positions": jnp.arange(length), "targets_segments": real}
  decoded = read_targets(
    model.decoder,
    model.embedding,
    {name: rows(array) for name, array in targets.items()},
    memory=model.encode(inputs).x,
    memory_mask=(inputs["inputs_segments"] > 0)[:, None, None, :],
    training=False,
    key=None,
  )
  return decoded.x.reshape(batch, count, length, -1)


def _after_one_prompt(model: Any, inputs: Batch, labels: LabelTokens) -> jax.Array:
  """A row has an input, which ends at index M, and then all labels, each as if at M and alone."""
  (batch, width), (count, length) = inputs["inputs"].shape, labels.ids.shape
  label = np.repeat(np.arange(-1, count), [width, *[length] * count])  # [T], -1 for the input
  places = np.concatenate([np.arange(width), *[width + np.arange(length)] * count])  # [T]
  given = jnp.sum(inputs["inputs_segments"] > 0, axis=1, keepdims=True)  # [B, 1]
  positions = places - (width - given)  # [B, T]
  ends = jnp.where(label < 0, width, width + jnp.asarray(labels.lengths)[label])
  real = (given > 0) & (positions >= 0) & (places < ends)
  # What is read is the token before: of the input, or of the label after its first place.
  of_input = jnp.take_along_axis(inputs["inputs"], (positions - 1).clip(0, width - 1), axis=1)
  of_label = jnp.asarray(labels.ids)[label, (places - width - 1).clip(0)]
  ids = jnp.where(real & (positions > 0), jnp.where(places <= width, of_input, of_label), 0)
  sees = (places <= places[:, None]) & ((label < 0) | (label == label[:, None]))  # [T, T], query and key
  context = Context(
    mask=(sees & real[:, None, :])[:, None],
    ids=ids,
    positions=jnp.where(real, positions, 0),
    segments=real.astype(jnp.int32),
    places=places,
  )
  x = model.decoder(model.embedding(ids), context, training=False, key=None).x
  return x[:, width:].reshape(batch, count, length, -1)


def _after_prompts(model: Any, inputs: Batch, labels: LabelTokens) -> jax.Array:
  """Each label has a row, of the inputs and then the label."""
  (batch, width), (count, length) = inputs["inputs"].shape, labels.ids.shape
  given = jnp.sum(inputs["inputs_segments"] > 0, axis=1)[:, None, None]  # [B, 1, 1]
  index = jnp.arange(width + length)
  after = jnp.broadcast_to(index - given, (batch, count, width + length))  # place in the label
  label = jnp.take_along_axis(jnp.broadcast_to(labels.ids, (batch, count, length)), after.clip(0, length - 1), axis=2)
  prompt = jnp.pad(inputs["inputs"], ((0, 0), (0, length)))[:, None]
  real = (given > 0) & (after < labels.lengths[:, None])

  def rows(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, real.shape).reshape(batch * count, -1).astype(jnp.int32)

  targets = {
    "targets": jnp.where(real, jnp.where(after < 0, prompt, label), 0),
    "targets_positions": jnp.where(real, index, 0),
    "targets_segments": real,
  }
  rows_of = {name: rows(array) for name, array in targets.items()}
  x = read_targets(model.decoder, model.embedding, rows_of, training=False, key=None).x
  x = x.reshape(batch, count, width + length, -1)
  return jnp.take_along_axis(x, (given + jnp.arange(length))[..., None], axis=2)  # [B, K, L, d]
