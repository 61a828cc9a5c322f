"""Hash layers: a token's expert is a hash of token ids, fixed before training. Roller et al. 2021, arXiv 2106.04426."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.router import RouterState, Site
from moe.routing.solvers.hash_tables import TABLE_FUNCTIONS, HashTable, own_buckets
from moe.routing.solvers.hashing import hash_buckets
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput


def previous_ids(ids: jax.Array, positions: jax.Array) -> jax.Array:
  """int32 `[..., n]`: the id before each token of `ids` `[..., n]`, 0 where a segment starts (`positions` 0)."""
  shifted = jnp.roll(ids, 1, axis=-1)
  return jnp.where(_starts(positions), 0, shifted)


def next_ids(ids: jax.Array, positions: jax.Array) -> jax.Array:
  """int32 `[..., n]`: the id after each token, 0 where a segment or the row ends."""
  shifted = jnp.roll(ids, -1, axis=-1)
  return jnp.where(jnp.roll(_starts(positions), -1, axis=-1), 0, shifted)


def sections_chosen(buckets: jax.Array, num_buckets: int) -> jax.Array:
  """Bool `[..., E]`: expert m * B + b if hash m gives bucket b, `buckets` int32 `[N, ...]`; B * N = E."""
  chosen = jnp.moveaxis(buckets[..., None] == jnp.arange(num_buckets), 0, -2)
  return chosen.reshape(*chosen.shape[:-2], -1)


def _starts(positions: jax.Array) -> jax.Array:
  """Bool `[..., n]`, where a segment starts; the row's first token always does."""
  return (positions == 0).at[..., 0].set(True)


@dataclasses.dataclass(frozen=True)
class HashConfig(TokenwiseConfig, CapacityConfig, name="hash"):
  """Hash layers: a fixed hash of token ids chooses the experts.

  With x_t the token's own id (in a decoder, ids are its inputs, so x_t is the previous target), `function` is::

    random            hash(x_t)
    balanced          x_t's entry in a table that gives experts equally many tokens of a corpus
    bigram            hash(x_{t-1}, x_t)
    previous          hash(x_{t-1})
    position          hash(t), t within the segment
    future            hash(x_{t+1}), an oracle: in a decoder that is the target itself, so the loss collapses. Not
                      causal; it is the positive control of leak tests
    predicted_future  hash(prediction of x_{t+1} from x_t), by a bigram model, which is a table; the paper's baseline, a
                      transformer, would need a second forward pass
    clustered         the k-means cluster of x_t's embedding in a trained baseline
    dispersed         x_t's entry in a table that spreads the tokens of each such cluster
    modulo            x_t mod E, the hashing baseline of Zhou et al. 2022
    table             x_t's entry in a table of your own

  where hash is `moe.routing.solvers.hashing.hash_buckets`, and x is 0 outside the segment. All layers of a stack share
  it.

  Attributes:
    function: what is hashed, see above.
    hashes: N of MultiHash. The experts form N sections of E / N, and an independent hash chooses one expert of each
      section, so few tokens share all their experts. The paper cuts the network's matrices into N segments, each chosen
      by a hash; here an expert is one such segment of hidden units, and the sum of a token's experts is the network of
      its segments. Set the experts' `d_ff` to the model's divided by N to keep the cost. A capacity factor counts
      experts per token, so N holds every choice if the load is even.
    seed: of hash; tables and modulo have none.
    table: path of the table made by `scripts/build_hash_table.py`, for functions that use one. It is read when a run
      starts and then stored in its checkpoints. For "table", a file by `numpy.savez(path, buckets=...)`, integers
      `[vocab_size]` or `[hashes, vocab_size]` from 0 to E / N - 1.
  """

  paper = "Roller et al. 2021, arXiv 2106.04426"
  reads_ids = True

  function: Literal[
    "random",
    "balanced",
    "bigram",
    "previous",
    "position",
    "future",
    "predicted_future",
    "clustered",
    "dispersed",
    "modulo",
    "table",
  ] = "random"
  hashes: int = 1
  seed: int = 0
  table: str = ""

  def __post_init__(self):
    super().__post_init__()
    require(self.hashes >= 1, "hashes", self.hashes, "expected at least 1")
    alike = self.function == "modulo" and self.hashes > 1
    require(not alike, "hashes", self.hashes, 'expected 1, since function = "modulo" has no second hash')
    require(0 <= self.seed < 2**32, "seed", self.seed, "expected from 0 to 2^32 - 1")
    about = f"function = {self.function!r}"
    maker = "with buckets" if self.function == "table" else "made by scripts/build_hash_table.py"
    wanted = f"expected a file {maker} for {about}" if self.is_table else f"expected none for {about}"
    require(bool(self.table) == self.is_table, "table", self.table, wanted)

  @property
  def is_table(self) -> bool:
    """Whether the function is a table, of the user's or made from a corpus or a trained model."""
    return self.function in (*TABLE_FUNCTIONS, "table")

  @property
  def remembers(self) -> bool:
    """Whether decoding needs the previous id."""
    return self.function in ("bigram", "previous")

  def make(self, site: Site, rngs: nnx.Rngs) -> "HashLayers":
    return HashLayers(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return self.function != "future"

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    needs_ids = "hashes token ids: expected a layer with a vocab_size, as text models have"
    require(site.vocab_size is not None, "function", self.function, needs_ids)
    divides, experts = site.num_experts % self.hashes == 0, site.num_experts
    require(divides, "hashes", self.hashes, f"expected a divisor of the {experts} experts, for equal sections")

  def stored(self, site: Site, vocabulary: str | None) -> dict[str, np.ndarray]:
    if not self.is_table:
      return {}
    experts, size = site.num_experts, site.vocab_size
    if self.function == "table":
      return {"table": own_buckets(self.table, self.hashes, experts // self.hashes, size)}
    table, path = HashTable.read(self.table), self.table
    return {"table": table.checked(path, self.function, self.hashes, experts, vocabulary, size)}


class HashLayers(TokenwiseRouter):
  """No parameters, no loss, weight 1: only the experts learn.

  In a compiled program, where values cannot be checked, a token id beyond the vocabulary has no expert; elsewhere it is
  an error.
  """

  config: HashConfig

  def __init__(self, config: HashConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts, self.vocab_size = config, site.num_experts, site.vocab_size
    self.num_buckets = site.num_experts // config.hashes
    if config.is_table:
      # Until a run has read its file no token has an expert (-1), which no metric could mistake for a table.
      self.table = RouterState(jnp.full((config.hashes, site.vocab_size), -1, jnp.int32))

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    return self._select(inputs, previous_ids(inputs.ids, inputs.positions) if self.config.remembers else None)

  def init_memory(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`previous`: int32 `[batch]`, the last decoded id, for functions that hash it."""
    return {"previous": jnp.zeros(batch, jnp.int32)} if self.config.remembers else {}

  def select_next(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[Selection, dict[str, jax.Array]]:
    """See the base class. Without positions a row is one sequence; only "position" needs them.

    Raises:
      ValueError: it does, and there are none.
    """
    if inputs.positions is None and self.config.function == "position":
      raise ValueError("positions = None: expected int32 [B, T], which function = 'position' reads")
    if not self.config.remembers:
      return super().select_next(inputs, state)
    previous = state["previous"]
    previous = previous if inputs.positions is None else jnp.where(inputs.positions == 0, 0, previous)
    return self._select(inputs, previous), state | {"previous": inputs.ids[0]}

  def _select(self, inputs: RouterInput, previous: jax.Array | None) -> Selection:
    known = (inputs.ids >= 0) & (inputs.ids < self.vocab_size)
    if not isinstance(known, jax.core.Tracer):
      unknown = inputs.ids[~known & inputs.mask]
      wanted = f"expected token ids from 0 to {self.vocab_size - 1}"
      require(unknown.size == 0, "ids", unknown[:1].tolist(), wanted)
    buckets = self._buckets(inputs, previous)
    chosen = sections_chosen(buckets, self.num_buckets) & known[..., None]
    return Selection(chosen, jnp.ones(chosen.shape, jnp.float32), most=len(buckets))

  def _buckets(self, inputs: RouterInput, previous: jax.Array | None) -> jax.Array:
    """int32 `[N, G, n]`, from 0 to E / N - 1; `previous` for functions that hash it."""
    config, ids = self.config, inputs.ids
    keys: tuple[jax.Array, ...]
    match config.function:
      case "random":
        keys = (ids,)
      case "bigram":
        keys = (previous, ids)
      case "previous":
        keys = (previous,)
      case "position":
        keys = (inputs.positions,)
      case "future":
        keys = (next_ids(ids, inputs.positions),)
      case "modulo":
        return (ids % self.num_buckets)[None]
      case _:
        return self.table[...][:, ids]
    return hash_buckets(keys, self.num_buckets, config.hashes, config.seed)
