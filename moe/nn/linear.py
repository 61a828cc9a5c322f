"""Parameters with named axes, their initialiser, and products with them."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.parallel.kept import kept
from moe.parallel.sharding import Axes, product, whole

# The standard deviation of a standard normal that is cut off at -2 and 2.
_TRUNCATED_STDDEV = 0.87962566103423978


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: Axes = ()) -> nnx.Param:
  """A normally distributed float32 parameter of standard deviation `std`; `axes` name its axes for a mesh."""
  return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


@dataclasses.dataclass(frozen=True)
class KernelInit:
  """Initialiser of the matrices of attention, feed-forward networks and experts: variance `scale` / fan-in.

  Attributes:
    scale: 1, as in T5 1.1, keeps the size of what passes through. Fedus et al. 2021 (Switch, section 2.4) and
      flaxformer's MoE models have 0.1, which they found to train more stably.
    distribution: "normal", as in T5, or "truncated_normal", cut off at two standard deviations, as in these.
  """

  scale: float = 1.0
  distribution: Literal["normal", "truncated_normal"] = "normal"

  def __post_init__(self):
    require(self.scale > 0, "scale", self.scale, "expected more than 0")

  def __call__(self, rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, axes: Axes = ()) -> nnx.Param:
    """A float32 parameter; `axes` name its axes for a mesh."""
    std = (self.scale / fan_in) ** 0.5
    if self.distribution == "normal":
      return normal(rngs, shape, std, axes)
    drawn = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    return nnx.Param(std / _TRUNCATED_STDDEV * drawn, axes=axes)


T5_INIT = KernelInit()


def zeros(shape: tuple[int, ...], axes: Axes = ()) -> nnx.Param:
  """A float32 parameter that begins at 0, such as a bias; `axes` name its axes for a mesh."""
  return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def matmul(x: jax.Array, weight: nnx.Param, dtype: jnp.dtype, bias: nnx.Param | None = None) -> jax.Array:
  """`[..., d] @ [d, f]`, plus `bias [f]` if there is one, in `dtype`.

  Flattened, as XLA's CPU backend takes 1.7x as long for a 3-D left side.
  """
  y = kept(product(x.reshape(-1, x.shape[-1]), weight, dtype)).reshape(*x.shape[:-1], -1)
  return y if bias is None else y + whole(bias, dtype)


def affine(x: jax.Array, weights: jax.Array) -> jax.Array:
  """`x [..., d]` times all rows but the last of `weights [d + 1, f]`, plus that one, the bias.

  At the highest precision, as `moe.routing.scores.router_logits`: what it predicts decides where tokens go.
  """
  return jnp.matmul(x, weights[:-1], precision=jax.lax.Precision.HIGHEST) + weights[-1]
