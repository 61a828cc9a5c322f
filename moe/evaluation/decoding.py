"""Text from a model: greedy, or sampled with a temperature from the nucleus (Holtzman et al. 2020)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.models import Batch

PAD, END = 0, 1


def generate(
  model: nnx.Module,
  batch: Batch,
  max_length: int,
  *,
  temperature: float = 0.0,
  top_p: float = 1.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Continues every row of a batch until token 1 ends it or it is `max_length` tokens long.

  Args:
    model: from `ModelConfig.make`.
    batch: of an encoder-decoder `inputs`, `inputs_positions`, `inputs_segments`, one example per row; and `prompt`,
      int32 `[B, P]`, the first tokens, then zeros: required by a decoder (P may be 0), optional for an encoder-decoder.
    max_length: tokens per row, including the prompt.
    temperature: divides the logits; 0 takes the likeliest token.
    top_p: sample only from the fewest tokens whose probability reaches it.
    key: required if `temperature` is not 0.

  Returns:
    int32 `[B, max_length]`: the prompt, its continuation, the end token 1, then zeros. Padding, 0, is never generated.

  Raises:
    ConfigError: a negative temperature, `top_p` outside (0, 1], a prompt longer than `max_length`.
    ValueError: sampling without a key, or a decoder whose router is not causal.
  """
  require(temperature >= 0, "temperature", temperature, "expected at least 0")
  require(0 < top_p <= 1, "top_p", top_p, "expected more than 0 and at most 1")
  rows = next(iter(batch.values())).shape[0]
  prompt = batch.get("prompt", jnp.zeros((rows, 0), jnp.int32))
  width = prompt.shape[1]
  require(width <= max_length, "prompt", width, f"expected at most max_length = {max_length} tokens")
  if temperature > 0 and key is None:
    raise ValueError(f"temperature = {temperature}: expected a key to sample with")
  prompt = jnp.pad(jnp.asarray(prompt, jnp.int32), ((0, 0), (0, max_length - width)))
  batch = {name: jnp.asarray(array) for name, array in batch.items()} | {"prompt": prompt}
  key = jax.random.key(0) if key is None else key
  return _generate(*nnx.split(model), batch, temperature, top_p, key, greedy=temperature == 0)


@functools.partial(jax.jit, static_argnames=("graph", "greedy"))
def _generate(graph, variables, batch, temperature, top_p, key, *, greedy):
  model, prompt = nnx.merge(graph, variables), batch["prompt"]
  rows, length = prompt.shape
  state = model.start(batch, length)

  def unfinished(carry):
    position, _, ended, *_ = carry
    return (position < length) & ~ended.all()

  def extend(carry):
    position, last, ended, tokens, state = carry
    logits, state = model.step(last, state)
    logits = logits.at[:, PAD].set(-jnp.inf)
    choice = jnp.argmax(logits, axis=-1) if greedy else _draw(logits, position)
    given = prompt[:, position]
    token = jnp.where(given != PAD, given, jnp.where(ended, PAD, choice)).astype(jnp.int32)
    ended |= (given == PAD) & (token == END)
    return position + 1, token, ended, tokens.at[:, position].set(token), state

  def _draw(logits, position):
    return sample(logits / temperature, top_p, jax.random.fold_in(key, position))

  first = jnp.zeros(rows, jnp.int32)
  carry = (jnp.int32(0), first, jnp.zeros(rows, bool), jnp.zeros_like(prompt), state)
  return jax.lax.while_loop(unfinished, extend, carry)[3]


def sample(logits: jax.Array, top_p: jax.Array | float, key: jax.Array) -> jax.Array:
  """One token per row of `logits [B, V]`, sampled from the fewest likeliest tokens whose probability reaches `top_p`.

  The likeliest token is always among them; ties are broken by the lower id.
  """
  order = jnp.argsort(-logits, axis=-1, stable=True)
  descending = jnp.take_along_axis(logits, order, axis=-1)
  probability = jax.nn.softmax(descending, axis=-1)
  likelier = jnp.cumsum(probability, axis=-1) - probability
  kept = (likelier < top_p).at[:, 0].set(True)
  drawn = jax.random.categorical(key, jnp.where(kept, descending, -jnp.inf), axis=-1)
  return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]
