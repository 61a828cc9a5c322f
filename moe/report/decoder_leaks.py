"""How much of the future the routers of a trained decoder know: the mask-information meter on a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.evaluation.mask_information import Information, Masks, mask_information
from moe.evaluation.restore import Trained
from moe.report.types import Batch
from moe.routing.weights import layer_weights
from moe.training.state import merge

_IDS, _BATCHES, _BLOCKS = 8, 4, 6


def decoder_leaks(trained: Trained, batch: Batch, ids: np.ndarray) -> Information | None:
  """What the masks of every decoder layer tell about the next token, summed over experts; None for a dense decoder.

  Tokens are drawn from the most frequent ids, and only a few of them, so that each pair of ids is seen often.

  Args:
    trained: from `moe.evaluation.restore`.
    batch: one that the model reads; it gives the shape of the meter's batches and what the encoder reads.
    ids: int `[n]`, token ids of a text.
  """
  if trained.config.model.decoder_router is None:
    return None
  values, counts = np.unique(ids[ids > 1], return_counts=True)
  alphabet = values[np.argsort(-counts, kind="stable")][:_IDS]
  rows, length = batch["targets"].shape
  route = decoder_masks(trained, batch)
  key = jax.random.key(0)
  return mask_information(
    route, alphabet.tolist(), rows, length - 1, key, batches=_BATCHES, blocks=_BLOCKS, experts="apart"
  )


def decoder_masks(trained: Trained, batch: Batch) -> Masks:
  """From int32 `[B, T - 1]`, the tokens that a decoder reads after its first 0, to bool `[L, B, T - 1, E]`.

  A token is read one position after it is a target, so there is one more target, which is never read.
  """
  rows, length = batch["targets"].shape
  router = trained.config.model.decoder_router
  ones = jnp.ones((rows, length), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(length), ones.shape)
  given = batch | {"targets_segments": ones, "targets_positions": positions, "loss_weights": ones.astype(jnp.float32)}

  @jax.jit
  def routing(targets: jax.Array):
    network = merge(trained.graph, trained.params, trained.router_state)
    return network(given | {"targets": targets}, training=False).routing["decoder"]

  def masks(ids: jax.Array) -> jax.Array:
    found = jax.device_get(routing(jnp.pad(ids, ((0, 0), (0, 1)), constant_values=2)))
    groups = router.groups(rows, length, training=False)
    return layer_weights(found, groups, rows, length)[:, :, 1:] > 0

  return masks
