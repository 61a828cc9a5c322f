"""Text from a model: greedy, or sampled with a temperature from the nucleus (Holtzman et al. 2020)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.models import Batch, DecodeState

PAD, END = 0, 1
# Tokens per compiled call: between calls the host reports progress and can be stopped by Ctrl-C.
_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token.
    top_p: sample only from the fewest tokens whose probability reaches it.
    seed: of the random numbers. Each row has its own, so a text does not depend on the texts beside it.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self):
    usable = self.temperature == 0 or 1e-6 <= self.temperature <= 1e6
    require(usable, "temperature", self.temperature, "expected 0, or from 1e-6 to 1e6")
    require(0 < self.top_p <= 1, "top_p", self.top_p, "expected more than 0 and at most 1")
    require(0 <= self.seed < 2**32, "seed", self.seed, "expected from 0 to 2^32 - 1")


GREEDY = Sampling()


def generate(
  model: nnx.Module,
  batch: Batch,
  max_length: int,
  row_length: int,
  sampling: Sampling = GREEDY,
  *,
  first_row: int = 0,
  progress: Callable[[int], None] | None = None,
) -> jax.Array:
  """Continues every row of a batch until token 1 ends it or it is `max_length` tokens long.

  Args:
    model: from `ModelConfig.make`.
    batch: of an encoder-decoder `inputs`, `inputs_positions`, `inputs_segments`, one example per row; and `prompt`,
      int32 `[B, P]`, the first tokens, then zeros: required by a decoder (P may be 0), optional for an encoder-decoder.
    max_length: tokens per row, including the prompt.
    row_length: of the decoder's rows in training (`ModelConfig.stack_lengths`). Routers count their capacity for it, so
      that a text's beginning does not depend on how much is written.
    sampling: how tokens are chosen.
    first_row: number of the first row, where a batch is a part of what is sampled with one seed.
    progress: called every now and then with the number of positions that are written.

  Returns:
    int32 `[B, max_length]`: the prompt, its continuation, the end token 1, then zeros. Padding, 0, is never generated.

  Raises:
    ConfigError: a prompt longer than `max_length`.
    ValueError: a decoder whose router is not causal.
  """
  rows = next(iter(batch.values())).shape[0]
  prompt = batch.get("prompt", jnp.zeros((rows, 0), jnp.int32))
  width = prompt.shape[1]
  require(width <= max_length, "prompt", width, f"expected at most max_length = {max_length} tokens")
  prompt = jnp.pad(jnp.asarray(prompt, jnp.int32), ((0, 0), (0, max_length - width)))
  batch = {name: jnp.asarray(array) for name, array in batch.items()} | {"prompt": prompt}
  keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(sampling.seed)))(first_row + jnp.arange(rows))
  graph, variables = nnx.split(model)
  carry = _start(graph, variables, batch, max_length, row_length)
  for end in range(_STEPS, max_length + _STEPS, _STEPS):
    options = min(end, max_length), sampling.temperature, sampling.top_p, keys
    carry = _extend(graph, variables, prompt, carry, *options, greedy=sampling.temperature == 0)
    if progress is not None:
      progress(int(carry["position"]))
    if bool(carry["ended"].all()):
      break
  return carry["tokens"]


def greedy(model: Any, prompt: jax.Array, state: DecodeState, ended: jax.Array) -> jax.Array:
  """The likeliest continuation of every row, to be called in a compiled program.

  Args:
    model: the one whose `state` it is.
    prompt: int32 `[B, T]`, the first tokens of each row, then zeros.
    state: of decoding T tokens, none of them read yet.
    ended: bool `[B]`, rows that are not continued.

  Returns:
    int32 `[B, T]` as `generate`.
  """
  likeliest = lambda logits, position: jnp.argmax(logits, axis=-1)  # noqa: E731
  return _written(model, prompt, _begin(prompt, state, ended), prompt.shape[1], likeliest)["tokens"]


@functools.partial(jax.jit, static_argnames=("graph", "max_length", "row_length"))
def _start(graph, variables, batch, max_length: int, row_length: int) -> dict[str, Any]:
  state = nnx.merge(graph, variables).start(batch, max_length, row_length)
  return _begin(batch["prompt"], state, jnp.zeros(len(batch["prompt"]), bool))


@functools.partial(jax.jit, static_argnames=("graph", "greedy"), donate_argnames="carry")
def _extend(graph, variables, prompt, carry, end, temperature, top_p, keys, *, greedy: bool) -> dict[str, Any]:
  def choose(logits, position):
    if greedy:
      return jnp.argmax(logits, axis=-1)
    return sample(logits / temperature, top_p, jax.vmap(jax.random.fold_in, (0, None))(keys, position))

  return _written(nnx.merge(graph, variables), prompt, carry, end, choose)


def _begin(prompt: jax.Array, state: DecodeState, ended: jax.Array) -> dict[str, Any]:
  """What `_written` extends, before the first token."""
  nothing = jnp.zeros_like(prompt)
  return {"position": jnp.int32(0), "last": nothing[:, 0], "ended": ended, "tokens": nothing, "state": state}


def _written(model: Any, prompt: jax.Array, carry: dict[str, Any], end: Any, choose: Callable) -> dict[str, Any]:
  """Writes up to position `end`, or until every row has ended; `choose(logits [B, V], position)` gives tokens `[B]`."""

  def unfinished(carry):
    return (carry["position"] < end) & ~carry["ended"].all()

  def step(carry):
    position, ended = carry["position"], carry["ended"]
    logits, state = model.step(carry["last"], carry["state"])
    logits = logits.at[:, PAD].set(-jnp.inf)
    choice = choose(logits, position)
    given = prompt[:, position]
    token = jnp.where(given != PAD, given, jnp.where(ended, PAD, choice)).astype(jnp.int32)
    return {
      "position": position + 1,
      "last": token,
      "ended": ended | ((given == PAD) & (token == END)),
      "tokens": carry["tokens"].at[:, position].set(token),
      "state": state,
    }

  return jax.lax.while_loop(unfinished, step, carry)


def sample(logits: jax.Array, top_p: jax.Array | float, keys: jax.Array) -> jax.Array:
  """One token per row of `logits [B, V]`, sampled from the fewest likeliest tokens whose probability reaches `top_p`.

  The likeliest token is always among them; ties are broken by the lower id. Each row has its own of the `keys [B]`.
  """
  order = jnp.argsort(-logits, axis=-1, stable=True)
  descending = jnp.take_along_axis(logits, order, axis=-1)
  probability = jax.nn.softmax(descending, axis=-1)
  likelier = jnp.cumsum(probability, axis=-1) - probability
  kept = (likelier < top_p).at[:, 0].set(True)
  drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, descending, -jnp.inf))
  return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]
