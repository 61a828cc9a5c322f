"""k-means routing: a token goes to the expert of the nearest centroid. Gross, Ranzato and Szlam 2017.

Their experts divide a trained network's features by clusters found beforehand (`update` "fixed"). Alternatively the
centroids follow the training tokens as a moving average (Roy et al. 2021, Routing Transformer, section 4.1).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig, expert_budget
from moe.routing.files import read_arrays
from moe.routing.router import RouterState, Site
from moe.routing.solvers.clustering import means, spread, squared_distances, to_unit_length, totals
from moe.routing.solvers.highest import highest
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput


def moved_centroids(centroids: jax.Array, total: jax.Array, count: jax.Array, decay: float) -> jax.Array:
  """`decay * mu + (1 - decay) * mean` of each expert's points; a centroid without points stays.

  Args:
    centroids: float32 `[E, d]`.
    total: float32 `[E, d]`, the sum of each expert's points.
    count: float32 `[E]`, their number.
    decay: from 0 to 1.
  """
  return centroids + (1 - decay) * (means(total, count, centroids) - centroids)


def nearest_tokens(distances: jax.Array, mask: jax.Array, k: int, taken: jax.Array | int | None = None) -> jax.Array:
  """Bool `[n, E]`: the k real tokens of one group that are nearest to each centroid, ties to the earlier.

  Args:
    distances: float32 `[n, E]`.
    mask: bool `[n]`.
    k: tokens per expert, at most.
    taken: int32 scalar, how many of these; None for all.
  """
  tokens = highest(jnp.where(mask[:, None], -distances, -jnp.inf).T, k)[1]
  if taken is not None:
    tokens = jnp.where(jnp.arange(k) < taken, tokens, len(mask))
  chosen = jnp.zeros(distances.shape, bool).at[tokens, jnp.arange(distances.shape[1])[:, None]].set(True, mode="drop")
  return chosen & mask[:, None]


@dataclasses.dataclass(frozen=True)
class KMeansConfig(TokenwiseConfig, CapacityConfig, name="k_means"):
  """k-means routing: a token goes to the expert with the nearest centroid.

  Attributes:
    update: "moving_average" moves the centroids in training, "fixed" leaves them as the file has them.
    decay: of the moving average, per step.
    centroids: path of initial centroids made by `scripts/build_centroids.py`. Without one, the first step routes by
      random directions, and the centroids are then initialised to tokens of its first micro-batch that has some, far
      from each other (k-means++).
    balanced: whether an expert takes the n / E nearest of a sequence's n real tokens, like expert choice with centroids
      as the router: balanced, but not causal.
  """

  paper = "Gross et al. 2017, arXiv 1704.06363"

  update: Literal["moving_average", "fixed"] = "moving_average"
  decay: float = 0.999
  centroids: str = ""
  balanced: bool = False

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.decay < 1, "decay", self.decay, "expected at least 0 and less than 1")
    known = self.update != "fixed" or bool(self.centroids)
    require(
      known, "centroids", self.centroids, 'expected a file made by scripts/build_centroids.py for update = "fixed"'
    )
    free = not self.balanced or self.capacity_factor is None
    require(free, "capacity_factor", self.capacity_factor, "expected None, since balanced experts have no queue")

  def make(self, site: Site, rngs: nnx.Rngs) -> "KMeans":
    return KMeans(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return not self.balanced

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    enough = not self.balanced or length >= site.num_experts
    require(enough, "balanced", True, f"expected sequences of at least {site.num_experts} tokens, one per expert")

  def stored(self, site: Site, vocabulary: str | None) -> dict[str, np.ndarray]:
    """`[E, d]` for all layers, or `[L, E, d]`."""
    if not self.centroids:
      return {}
    centroids = read_arrays("centroids", self.centroids, ["centroids"], "scripts/build_centroids.py")["centroids"]
    wanted = (site.num_experts, site.d_model)
    fits = centroids.ndim in (2, 3) and centroids.shape[-2:] == wanted
    about = f"expected centroids [experts, d_model] = {wanted}, optionally with leading layers, not {centroids.shape}"
    require(fits, "centroids", self.centroids, about)
    return {"centroids": centroids, "begun": np.array(1)}


class KMeans(TokenwiseRouter):
  """The nearest centroid's expert, with weight 1; no gradient reaches the centroids.

  Tokens are scaled to unit length; a centroid is their mean, so it is shorter the wider its cluster.
  """

  config: KMeansConfig

  def __init__(self, config: KMeansConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.centroids = RouterState(to_unit_length(jax.random.normal(rngs.params(), (site.num_experts, site.d_model))))
    self.begun = RouterState(jnp.zeros((), jnp.int32))  # 1 once the centroids are initialised

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    points = jax.lax.stop_gradient(to_unit_length(inputs.tokens))
    distances = squared_distances(points, self.centroids[...])
    if self.config.balanced:
      chosen = jax.vmap(functools.partial(self._balanced, training=training))(distances, inputs.mask)
    else:
      chosen = jax.nn.one_hot(jnp.argmin(distances, axis=-1), self.num_experts, dtype=bool)
    moves = training and self.config.update == "moving_average"
    seen = self._seen(points, chosen & inputs.mask[..., None], inputs) if moves else {}
    most = None if self.config.balanced else 1
    return Selection(chosen, jnp.ones(chosen.shape, jnp.float32), seen=seen, most=most)

  def _balanced(self, distances: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    return nearest_tokens(distances, mask, *expert_budget(mask, self.num_experts, 1.0, "real", training=training))

  def _seen(self, points: jax.Array, chosen: jax.Array, inputs: RouterInput) -> dict[str, jax.Array]:
    if inputs.key is None:
      raise ValueError(
        f"RouterInput.key = None: expected a key, as {type(self).__name__} draws its first centroids in training"
      )
    flat, mask = points.reshape(-1, points.shape[-1]), inputs.mask.reshape(-1)
    first = jax.lax.cond(
      self.begun[...] > 0,
      lambda: self.centroids[...],
      lambda: spread(flat, mask, self.num_experts, inputs.key),
    )
    total, count = totals(points, chosen)
    return {"first": first, "total": total, "count": count}

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    moved = moved_centroids(self.centroids[...], seen["total"].sum(0), seen["count"].sum(0), self.config.decay)
    first = seen["first"][jnp.argmax(share > 0)]
    return {"centroids": jnp.where(self.begun[...] > 0, moved, first), "begun": jnp.ones((), jnp.int32)}
