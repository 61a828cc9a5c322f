"""The interface of every router: its config section, which declares its properties, and the module that routes."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import Choice
from moe.routing.groups import Groups
from moe.routing.types import RouterInput, RouterOutput


class RouterState(nnx.Variable):
  """Router state that no gradient updates: thresholds, biases, centroids, tables.

  `Router.learn` moves it, once per training step; checkpoints hold it next to the parameters.
  """


@dataclasses.dataclass(frozen=True)
class Site:
  """The layer that a router is made for: the sizes that its parameters' shapes depend on.

  Attributes:
    d_model: width of the tokens.
    num_experts: E.
    vocab_size: number of token ids; None if the model reads none.
  """

  d_model: int
  num_experts: int
  vocab_size: int | None = None


class FreeCounts(NamedTuple):
  """How many experts a layer has that cost nothing, by kind, in the order of their gates (`moe.experts.free`)."""

  zero: int
  copy: int
  constant: int


class RouterConfig(Choice):
  """A router's config section: its options, its declared properties, and how to make it.

  Each one is a frozen dataclass whose fields are options, next to its module in one file of `moe.routing.methods`.

  Attributes:
    paper: the one it follows.
    reads_ids: whether it reads token ids.
    is_soft: whether its slots are mixtures of the tokens of a group, a `SoftRouting`.
  """

  paper: ClassVar[str]
  reads_ids: ClassVar[bool] = False
  is_soft: ClassVar[bool] = False

  def make(self, site: Site, rngs: nnx.Rngs) -> "Router":
    """The router's module, with newly initialised parameters and state."""
    raise NotImplementedError

  def is_causal(self, *, training: bool) -> bool:
    """Whether a token's output never depends on later positions of its own sequence."""
    raise NotImplementedError

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    """Whether the outputs of a sequence of `length` tokens never depend on the other sequences of the batch."""
    raise NotImplementedError

  def causal_twin(self) -> "RouterConfig | None":
    """A router with the same parameters that is causal in evaluation, to evaluate this one's parameters without leaks.

    None if the parameters have no meaning under a causal rule.
    """
    return None

  @property
  def free_experts(self) -> FreeCounts | None:
    """The layer's experts that cost nothing, which the router chooses from beside the E others; None for none."""
    return None

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    """How `batch` sequences of `length` tokens are divided into routing groups.

    In evaluation every batch can be divided: groups adapt to what there is (`checked_groups`).

    Raises:
      ConfigError: in training, the batch cannot be divided into groups of the requested size.
    """
    raise NotImplementedError

  def check(self, site: Site, batch: int, length: int) -> None:
    """Raises `ConfigError` if the options do not fit the layer or training batches of this shape. Computes nothing."""
    self.check_site(site)
    self.groups(batch, length)

  def check_site(self, site: Site) -> None:
    """The part of `check` that needs no batch. Raises `ConfigError` if the options do not fit the layer."""

  @property
  def growth(self) -> Literal["silent", "unchosen"] | None:
    """How new experts begin if no output is to change with them (`moe.convert.growing`); None if it cannot be so.

    "silent": every expert decides on its own which tokens it takes and with what weight, so new ones may take tokens
    from the start, if what they compute is 0. "unchosen": a state `bias`, added to scores between 0 and 1, moves the
    choice alone, not the weights; it holds new experts back until training lets them in.
    """
    return None

  def stored(self, site: Site, vocabulary: str | None) -> dict[str, np.ndarray]:
    """Arrays from files that initialise the `RouterState` of these names; later, checkpoints hold them.

    Args:
      site: the layer.
      vocabulary: fingerprint of the data's vocabulary; None if unknown, and then not compared.

    Raises:
      ConfigError: a file is missing, or was made for another vocabulary or number of experts.
    """
    return {}


class Router(nnx.Module):
  """Decides which experts see which tokens.

  Routers compute in float32 whatever the dtype of the tokens. Calling one changes nothing: in training its output says
  what was `seen`, and after the step `learn` moves its `RouterState` once, whatever the number of micro-batches.

  Attributes:
    config: the router's config section.
    num_experts: E.
  """

  config: RouterConfig
  num_experts: int

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    """Routes every group of `inputs`."""
    raise NotImplementedError

  def learn(self, seen: dict[str, jax.Array]) -> None:
    """Moves the state, if there is any, once after a training step; a step without a real token leaves it as it is.

    Args:
      seen: `RouterOutput.seen` of the step's M micro-batches, each array stacked along a leading axis M, and `tokens`
        int32 `[M]`, how many were real.
    """
    if not seen:
      return
    tokens = seen["tokens"].astype(jnp.float32)
    share = tokens / jnp.maximum(tokens.sum(), 1.0)  # [M]; exactly 1 for a single micro-batch
    for name, new in self.next_state(seen, share).items():
      state = getattr(self, name)
      state[...] = jnp.where(tokens.sum() > 0, new, state[...])

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    """The states after a step, by name, computed from those before it.

    Args:
      seen: as in `learn`.
      share: float32 `[M]`, each micro-batch's share of the step's real tokens, for `step_mean`.
    """
    raise NotImplementedError

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """The state for decoding `batch` rows of `length` tokens; the first axis of every array is `batch`."""
    raise NotImplementedError

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """Routes the next token of each sequence exactly as evaluation of its whole row, alone, would.

    Args:
      inputs: one group of `batch` tokens, `[1, batch, d]`: token i belongs to sequence i.
      state: from `init_decode_state`, at the start of a row, or from the previous call.

    Raises:
      NotImplementedError: the router is not causal, so its decision on a token needs later tokens.
    """
    raise NotImplementedError(f"{type(self).__name__} looks at later tokens: it cannot decode step by step")


def router_shapes(router: RouterConfig, site: Site) -> dict[str, tuple[int, ...]]:
  """The shapes of a router's parameters and state in one layer, by name."""
  module = nnx.eval_shape(lambda: router.make(site, nnx.Rngs(0)))
  return {str(name): leaf.shape for name, leaf in nnx.to_pure_dict(nnx.split(module)[1]).items()}


def expert_axes(router: RouterConfig, site: Site) -> dict[str, int | None]:
  """The axis of experts in each of these arrays; None in one that has none."""
  here, wider = (router_shapes(router, dataclasses.replace(site, num_experts=site.num_experts + i)) for i in (0, 1))
  differing = {
    name: [a for a, size in enumerate(shape) if size == site.num_experts != wider[name][a]]
    for name, shape in here.items()
  }
  return {name: axes[0] if axes else None for name, axes in differing.items()}


def step_mean(share: jax.Array, means: jax.Array) -> jax.Array:
  """`[...]`, the mean over a step's tokens: of its micro-batches' `means` `[M, ...]`, by their `share` of tokens."""
  return jnp.tensordot(share, means, 1, precision=jax.lax.Precision.HIGHEST)
