"""How much of the future a trained decoder's routers know: the mask-information meter on a checkpoint."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe.evaluation.mask_information import Information, mask_information
from moe.evaluation.restore import Trained
from moe.routing.weights import expert_weights
from moe.training.state import merge

_IDS, _BATCHES, _BLOCKS = 8, 4, 6


def decoder_leaks(trained: Trained, batch: dict[str, np.ndarray], ids: np.ndarray) -> Information | None:
  """What the masks of every decoder layer tell about the next token, summed over experts; None for a dense decoder.

  Tokens are drawn from the few ids that are most frequent, so that each is often seen with each next one.

  Args:
    trained: from `moe.evaluation.restore`.
    batch: one that its model reads; its shape is that of the meter's batches, and its inputs are the encoder's.
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


def decoder_masks(trained: Trained, batch: dict[str, np.ndarray]) -> Callable[[jax.Array], np.ndarray]:
  """From int32 `[B, T - 1]`, the tokens that a decoder reads after its first 0, to bool `[L, B, T - 1, E]`.

  A token is read one place after it was a target, so one more target is needed, of which nothing is read.
  """
  model = trained.config.model
  rows, length = batch["targets"].shape
  ones = jnp.ones((rows, length), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(length), ones.shape)
  given = batch | {"targets_segments": ones, "targets_positions": positions, "loss_weights": ones.astype(jnp.float32)}

  @jax.jit
  def routing(targets: jax.Array):
    network = merge(trained.graph, trained.params, trained.router_state)
    return network(given | {"targets": targets}, training=False).routing["decoder"]

  def masks(ids: jax.Array) -> np.ndarray:
    found = jax.device_get(routing(jnp.pad(ids, ((0, 0), (0, 1)), constant_values=2)))
    return expert_weights(found, model.decoder_router.groups(rows, length), rows, length)[:, :, 1:] > 0

  return masks
