"""From token ids to vectors, and from vectors to logits."""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.models.model_config import ModelConfig
from moe.nn.linear import normal
from moe.parallel.mesh import keep_rows
from moe.parallel.sharding import whole


class TokenEmbedding(nnx.Module):
  """Input embeddings `[V, d]`, shared with the output if `tie_embeddings`; else the output has a head `[d, V]`.

  The table is initialised with standard deviation 1, as in T5; if it is shared, logits are scaled by `d ** -0.5`.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    vocab, d = config.vocab_size, config.d_model
    self.dtype, self.scale = config.compute_dtype, d**-0.5
    self.operands = jnp.dtype(jnp.float32) if config.logits_operands == "float32" else self.dtype
    self.table = normal(rngs, (vocab, d), 1.0, ("vocab", "embed"))
    self.head = None if config.tie_embeddings else normal(rngs, (d, vocab), d**-0.5, ("embed", "vocab"))

  @jax.named_scope("vocabulary")
  def __call__(self, ids: jax.Array) -> jax.Array:
    """int32 `[...]` to `[..., d]` in the compute dtype."""
    return whole(self.table, jnp.float32)[ids].astype(self.dtype)

  @jax.named_scope("vocabulary")
  def logits(self, x: jax.Array) -> jax.Array:
    """`[..., d]` to float32 `[..., V]`; factors as `logits_operands` says, sums in float32."""
    # A shared table in float32 first, as for inputs: for TPUs XLA then adds both gradients, and devices sum them once.
    shared = self.head is None
    kernel = whole(self.table, jnp.float32).astype(self.operands).T if shared else whole(self.head, self.operands)
    rows = x.reshape(-1, x.shape[-1]).astype(self.operands) * (self.scale if shared else 1.0)
    # Accelerators round float32 factors too, unless told not to; where all is in float32 that stays the platform's way.
    exact = jax.lax.Precision.HIGHEST if self.operands != self.dtype else None
    logits = jnp.matmul(rows, kernel, precision=exact, preferred_element_type=jnp.float32)
    return keep_rows(logits.reshape(*x.shape[:-1], -1), "model")
