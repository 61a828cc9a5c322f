"""Slow and obvious forms of what the routing core computes, for tests to compare with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import build
from moe.routing import Groups, RaggedRouting, RouterConfig, RouterInput, Routing, Site

D_MODEL, NUM_EXPERTS, VOCABULARY = 8, 4, 61

# Options with which a leak shows in a few tokens, of routers whose default capacity drops next to none of them.
TIGHT = {
  "batch_priority": {"capacity_factor": 0.75},
  "gshard": {"capacity_factor": 0.75},
  "sinkhorn_base": {"group_size": 16},
}


def token_weights(routing: Routing, n: int, num_experts: int) -> np.ndarray:
  """`[G, n, E]`, what each expert's output is multiplied by for each token; NaN where it does not see the token."""
  routing = jax.tree.map(np.asarray, routing)
  if isinstance(routing, RaggedRouting):
    sizes = routing.group_sizes
    unused = routing.token.shape[1] - sizes.sum(1)
    expert = np.stack([np.repeat(np.arange(num_experts + 1), [*s, u]) for s, u in zip(sizes, unused, strict=True)])
  else:
    expert = np.broadcast_to(np.arange(num_experts)[None, :, None], routing.token.shape)
  weights = np.full((routing.token.shape[0], n, num_experts), np.nan, np.float32)
  for group in range(weights.shape[0]):
    token, weight = routing.token[group].ravel(), routing.weight[group].ravel()
    for t, e, w in zip(token, expert[group].ravel(), weight, strict=True):
      if t == n:
        assert w == 0, "an empty slot with a weight"
        continue
      assert np.isnan(weights[group, t, e]), f"expert {e} holds token {t} twice"
      weights[group, t, e] = w
  return weights


def serve(choices, gates, wanted, queue, num_experts: int, capacity: int) -> np.ndarray:
  """`[n, E]` as above: (token, choice) pairs are served in the order of `queue` while their expert has slots left."""
  weights = np.full((len(choices), num_experts), np.nan, np.float32)
  free = [capacity] * num_experts
  for token, choice in queue:
    expert = choices[token, choice]
    if wanted[token, choice] and free[expert] > 0:
      free[expert] -= 1
      weights[token, expert] = gates[token, choice]
  return weights


def make(name: str, num_experts: int = NUM_EXPERTS, d_model: int = D_MODEL, seed: int = 0, **options):
  """A router by name whose kernels, where it has some, are large enough to make unequal choices."""
  config = build(RouterConfig, {"name": name, **options})
  router = config.make(Site(d_model, num_experts, VOCABULARY), nnx.Rngs(seed))
  for name in ("kernel", "free_kernel"):
    if (kernel := getattr(router, name, None)) is not None:
      drawn = 0.02 * jax.random.normal(jax.random.key(seed), kernel.shape)
      kernel[...] = 50 * jnp.where(kernel[...] == 0, drawn, kernel[...])
  return router


def ids_of(tokens) -> jax.Array:
  """int32 `[...]`, token ids that change with the tokens `[..., d]`, from 2 to the vocabulary's end."""
  return jnp.floor(jnp.abs(tokens[..., 0].astype(jnp.float32)) * 1000).astype(jnp.int32) % (VOCABULARY - 2) + 2


def inputs_of(tokens, groups: Groups, mask=None, key=None) -> RouterInput:
  """`[B, T, d]` cut into routing groups, with ids and positions."""
  mask = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
  cut = [groups.cut(array) for array in (tokens, mask, ids_of(tokens), positions)]
  return RouterInput(*cut, key=key, length=tokens.shape[1])


def route(router, tokens, *, training: bool = False, mask=None, key=None):
  """The `RouterOutput` of a batch `[B, T, d]`, cut into groups as a layer would; compiled, which is faster here."""
  graph, state = nnx.split(router)
  return _route(graph, state, tokens, mask, key, training=training)


def learn(router, inputs: RouterInput, *others: RouterInput):
  """A training step in one micro-batch or several: the `RouterOutput`s, after which the router's state has moved."""
  outputs = [router(each, training=True) for each in (inputs, *others)]
  seen = [output.seen | {"tokens": each.mask.sum()} for output, each in zip(outputs, (inputs, *others), strict=True)]
  if outputs[0].seen:
    router.learn(jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen))
  return outputs


def routing_of(router, tokens, *, training: bool = False, mask=None, key=None) -> Routing:
  """The `Routing` alone, which compiles faster."""
  graph, state = nnx.split(router)
  return _routing_of(graph, state, tokens, mask, key, training=training)


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def _routing_of(graph, state, tokens, mask, key, *, training: bool):
  return _route(graph, state, tokens, mask, key, training=training).routing


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def _route(graph, state, tokens, mask, key, *, training: bool):
  router, (batch, length, _) = nnx.merge(graph, state), tokens.shape
  groups = router.config.groups(batch, length, training=training)
  return router(inputs_of(tokens, groups, mask, key), training=training)


def with_kernel(router, kernel):
  """The same router with another kernel, which may be traced."""
  graph, state = nnx.split(router)
  return nnx.merge(graph, jax.tree.map(lambda _: kernel, state))


def of_sequences(
  routing: Routing, batch: int, length: int, num_experts: int = NUM_EXPERTS, by_position: bool = False
) -> np.ndarray:
  """`token_weights` as `[B, T, E]`, for any groups."""
  groups = Groups(batch * length // routing.token.shape[0], by_position)
  return groups.join(token_weights(routing, groups.size, num_experts), batch, length)


def random_tokens(batch: int, length: int, d_model: int = D_MODEL, seed: int = 1) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, d_model)), jnp.float32)
