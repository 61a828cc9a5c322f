"""BASE layers: the assignment of equally many tokens to each expert with the largest sum of scores.

Lewis et al. 2021, arXiv 2103.16716. Training balances exactly, by solving the assignment over tokens of many sequences;
in evaluation every token takes its best expert, since balancing would leak what other tokens are.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import queues
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site
from moe.routing.sampling import training_key
from moe.routing.scores import router_logits
from moe.routing.solvers.balanced_assignment import BalancedAssignment, balanced_assignment
from moe.routing.types import RouterInput, RouterOutput, Routing

_GAIN = 0.1


@dataclasses.dataclass(frozen=True)
class BaseConfig(RouterConfig, name="base"):
  """BASE: a balanced assignment in training, each token's best expert in evaluation.

  Attributes:
    group_size: tokens assigned together in training; 0 for the whole batch.
    shuffle: whether tokens are spread over these groups at random, so that none holds only one sequence (section 3.2).
  """

  paper = "Lewis et al. 2021, arXiv 2103.16716"

  group_size: int = 0
  shuffle: bool = True

  def __post_init__(self):
    check_group_size(self.group_size)

  def make(self, site: Site, rngs: nnx.Rngs) -> "Base":
    return Base(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return not training

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return not training or (not self.shuffle and within_sequences(self.group_size, length))

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    """A single group; the router splits it into the groups of the assignment."""
    return Groups(batch * length)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    group = checked_groups(self.group_size, batch, length).size
    wanted = f"expected at least one token for each of the {site.num_experts} experts"
    require(group >= site.num_experts, "group_size", self.group_size or group, wanted)


class Base(Router):
  """BASE gated by the sigmoid of the score, which with the residual is the paper's mix of token and expert output.

  The published layer also initialises its experts' last matrix to zero; here experts are initialised as in every layer.
  The metric `assignment_gap` is a certified bound on the assignment's distance from the optimum, in score per token.
  """

  config: BaseConfig

  def __init__(self, config: BaseConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    orthogonal = jax.nn.initializers.orthogonal(_GAIN)
    self.kernel = nnx.Param(orthogonal(rngs.params(), (site.d_model, site.num_experts), jnp.float32))

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    logits = router_logits(inputs.tokens, self.kernel[...])[0]
    mask = inputs.mask[0]
    routing: Routing
    if not training:
      expert = jnp.argmax(logits, axis=-1)
      routing = queues.ragged_routing(expert[:, None], _gates(logits, expert), mask[:, None], self.num_experts)
      bound = {}
    else:
      found = self._assigned(jax.lax.stop_gradient(logits), mask, inputs)
      bound = {"assignment_gap": found.gap.sum() / jnp.maximum(mask.sum(), 1)}
      expert = jnp.minimum(found.expert, self.num_experts - 1)
      ahead = queues.queue_by_position(expert[:, None], mask[:, None], self.num_experts)
      routing = queues.slot_routing(
        expert[:, None], _gates(logits, expert), mask[:, None], ahead, self.num_experts, self._capacity(len(mask))
      )
    routing = jax.tree.map(lambda leaf: leaf[None], routing)
    metrics = routing_metrics(routing, inputs.mask, jax.nn.softmax(logits)[None], asked=mask.sum())
    return RouterOutput(routing, {}, jnp.zeros(()), metrics | bound)

  def _capacity(self, n: int) -> int:
    group = self.config.group_size or n
    return n // group * -(-group // self.num_experts)

  def _assigned(self, scores: jax.Array, mask: jax.Array, inputs: RouterInput) -> BalancedAssignment:
    """The assignment for scores `[n, E]`: `expert` in the order of the tokens, the other fields per group."""
    n = len(mask)
    order = jnp.arange(n)
    if self.config.shuffle:
      order = jax.random.permutation(training_key(self, inputs), n)
    group = self.config.group_size or n
    dealt = scores[order].reshape(-1, group, self.num_experts), mask[order].reshape(-1, group)
    found = jax.vmap(balanced_assignment)(*dealt)
    expert = jnp.zeros(n, jnp.int32).at[order].set(found.expert.reshape(-1), unique_indices=True)
    return found._replace(expert=expert)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """Empty: in evaluation each token is routed on its own."""
    return {}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    return self(inputs, training=False), state


def _gates(logits: jax.Array, expert: jax.Array) -> jax.Array:
  """`[n, 1]`, sigmoid of each token's score for its expert: equation 2."""
  return jax.nn.sigmoid(jnp.take_along_axis(logits, expert[:, None], axis=-1))
