"""The interface of every router: its section of the config, which says what it is, and the module that decides."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from moe.config import Choice
from moe.routing.groups import Groups
from moe.routing.types import RouterInput, RouterOutput


class RouterState(nnx.Variable):
  """What a router remembers and no gradient moves: thresholds, biases, centroids, tables.

  `Router.__call__` assigns it in training only; a checkpoint holds it beside the parameters.
  """


@dataclasses.dataclass(frozen=True)
class Site:
  """The layer that a router is made for: what the shapes of its parameters depend on.

  Attributes:
    d_model: width of the tokens.
    num_experts: E.
    vocab_size: of the token ids; None where the model reads none.
  """

  d_model: int
  num_experts: int
  vocab_size: int | None = None


class RouterConfig(Choice):
  """A router's section of the config: its options, what it declares about itself, and how it is made.

  A member is a frozen dataclass whose fields are the options, beside its module in one file of `moe.routing.methods`.

  Attributes:
    paper: that it follows.
    reads_ids: whether it looks at token ids.
  """

  paper: ClassVar[str]
  reads_ids: ClassVar[bool] = False

  def make(self, site: Site, rngs: nnx.Rngs) -> "Router":
    """The router's module, with new parameters and state."""
    raise NotImplementedError

  def is_causal(self, *, training: bool) -> bool:
    """Whether a token's output never depends on later positions of its own sequence."""
    raise NotImplementedError

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    """Whether the outputs of a sequence of `length` tokens never depend on the other sequences of the batch."""
    raise NotImplementedError

  def causal_twin(self) -> "RouterConfig | None":
    """A router with the same parameters whose rule of evaluation is causal, to judge this one's parameters by.

    None where the parameters mean nothing under a causal rule.
    """
    return None

  def groups(self, batch: int, length: int) -> Groups:
    """How `batch` sequences of `length` tokens are divided into routing groups.

    Raises:
      ConfigError: this batch cannot be divided into the groups that the options ask for.
    """
    raise NotImplementedError

  def check(self, site: Site, batch: int, length: int) -> None:
    """Raises `ConfigError` where the options do not suit the layer, or batches of this shape. Computes nothing."""
    self.check_site(site)
    self.groups(batch, length)

  def check_site(self, site: Site) -> None:
    """The part of `check` that needs no batch. Raises `ConfigError` where the options do not suit the layer."""

  def stored(self, site: Site, vocabulary: str | None) -> dict[str, np.ndarray]:
    """Arrays from files that the `RouterState` of these names begins with; later, checkpoints hold them.

    Args:
      site: the layer.
      vocabulary: fingerprint of the data's vocabulary; None where it is not known, and not compared.

    Raises:
      ConfigError: a file is missing, or was made for another vocabulary or number of experts.
    """
    return {}


class Router(nnx.Module):
  """Decides which experts see which tokens.

  Its mathematics is float32 whatever the dtype of the tokens. In training it may assign its `RouterState`; the decision
  of a step depends on the state before that step.

  Attributes:
    config: the router's section.
    num_experts: E.
  """

  config: RouterConfig
  num_experts: int

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    """Routes every group of `inputs`."""
    raise NotImplementedError

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """What decoding `batch` sequences of at most `length` tokens must remember; arrays lead with `batch`."""
    raise NotImplementedError

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """Routes one new token of each sequence exactly as the whole sequence would have been routed in evaluation.

    Args:
      inputs: one group of `batch` tokens, `[1, batch, d]`: token i belongs to sequence i.
      state: from `init_decode_state` or the previous call.

    Raises:
      NotImplementedError: the router is not causal, so its decision about a token needs the tokens after it.
    """
    raise NotImplementedError(f"{type(self).__name__} looks at later tokens: it cannot decode step by step")
