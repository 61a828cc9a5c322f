"""The Mixture-of-Experts layer: the router makes a `Routing`, dispatch sends tokens out, combine brings them back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import build, in_section, require
from moe.experts.dispatch import one_device
from moe.experts.exchange.over_mesh import over_mesh
from moe.experts.free import FreeExperts
from moe.experts.kernels.dropout import for_batch, key_of
from moe.experts.network import Experts
from moe.experts.report import LayerReport, report_of
from moe.nn.activations import ACTIVATIONS, Form
from moe.nn.attention import segment_positions
from moe.nn.feed_forward import FeedForward
from moe.nn.linear import T5_INIT, KernelInit
from moe.nn.streams import named_streams
from moe.parallel.mesh import current_mesh
from moe.routing import Groups, RouterConfig, RouterInput, RouterOutput, Routing, Site
from moe.routing.files import load_state
from moe.routing.scores import scale_matrices


class MoE(nnx.Module):
  """`num_experts` feed-forward networks and the router that chooses among them, without the residual connection.

  Args:
    d_model: width of the tokens.
    num_experts: E.
    d_ff: hidden width of an expert.
    router: a config, or the name or mapping that makes one: `{"name": "switch", "capacity_factor": 1.5}`.
    form: activation of the experts.
    dtype: compute dtype of the experts; parameters are float32.
    shared_experts: experts that see every token with weight 1 (Dai et al. 2024, DeepSeekMoE, section 3.2), built as one
      network of width `shared_experts * d_ff`.
    dropout: probability that a hidden unit of an expert, shared or not, is dropped; in training, given a key.
    bias: whether the experts have biases (the shared ones have none).
    router_init_scale: factor of the router's initial matrices, whatever the method draws.
    gate_scale: factor of the chosen experts' sum, as if every gate were multiplied by it; expert choice's start at 1/E.
    vocab_size: number of token ids, for routers that read them.
    init: initialiser of the experts' matrices.
    read_files: whether to read the files that initialise router state (hash tables, centroids) now; otherwise the
      caller loads them before the first call, as training does.
    rngs: parameters are drawn from its stream `params`.

  Raises:
    ConfigError: an argument is invalid, or the router's options do not fit the layer.
  """

  def __init__(
    self,
    d_model: int,
    num_experts: int,
    d_ff: int,
    router: RouterConfig | str | Mapping[str, Any],
    *,
    form: Form = "gelu",
    dtype: jax.typing.DTypeLike = jnp.float32,
    shared_experts: int = 0,
    dropout: float = 0.0,
    bias: bool = False,
    router_init_scale: float = 1.0,
    gate_scale: float = 1.0,
    vocab_size: int | None = None,
    init: KernelInit = T5_INIT,
    read_files: bool = True,
    rngs: nnx.Rngs,
  ):
    for name, size in {"d_model": d_model, "num_experts": num_experts, "d_ff": d_ff}.items():
      require(isinstance(size, int) and size >= 1, name, size, "expected a whole number, at least 1")
    require(shared_experts >= 0, "shared_experts", shared_experts, "expected at least 0")
    require(form in ACTIVATIONS, "form", form, f"expected one of {', '.join(ACTIVATIONS)}")
    self.config = router if isinstance(router, RouterConfig) else build(RouterConfig, router, "router")
    self.site = Site(d_model, num_experts, vocab_size)
    with in_section("router"):
      self.config.check_site(self.site)
    require(0 <= dropout < 1, "dropout", dropout, "expected at least 0 and less than 1")
    self.dropout, self.gate_scale = dropout, gate_scale
    dtype, of = jnp.dtype(dtype), named_streams(rngs)
    self.router = self.config.make(self.site, of("router"))
    scale_matrices(self.router, router_init_scale)
    self.experts = Experts(num_experts, d_model, d_ff, form, dtype, init, bias=bias, rngs=of("experts"))
    width = shared_experts * d_ff
    self.shared = FeedForward(d_model, width, form, dtype, init=init, rngs=of("shared")) if width else None
    self.free = FreeExperts(free, d_model, dtype, init, rngs=of("free")) if (free := self.config.free_experts) else None
    if read_files:
      load_state(self.router, self.config.stored(self.site, None))

  def __call__(
    self,
    x: jax.Array,
    *,
    segments: jax.Array | None = None,
    ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    training: bool = False,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, LayerReport]:
    """Applies the layer to a batch: returns `[B, T, d]` and the layer's report.

    Args:
      x: `[B, T, d]`.
      segments: int32 `[B, T]`, numbers the sequences packed into a row, 0 for padding; None for one sequence per row.
      ids: int32 `[B, T]` token ids, for routers that read them.
      positions: int32 `[B, T]`, position within the token's sequence; None to count within segments.
      training: whether to drop units, draw random numbers and use the router's training capacity.
      key: PRNG key, for dropout and for routers that are random in training.

    Raises:
      ValueError: an input has the wrong shape, or one that the router needs is missing.
      ConfigError: in training, a batch of this shape cannot be divided into the router's groups.
    """
    x = jnp.asarray(x)
    if x.ndim != 3 or x.shape[-1] != self.site.d_model or x.size == 0:
      raise ValueError(f"x = {list(x.shape)}: expected [B, T, {self.site.d_model}]")
    for name, array in {"segments": segments, "ids": ids, "positions": positions}.items():
      if array is not None and array.shape != x.shape[:2]:
        raise ValueError(f"{name} = {list(array.shape)}: expected {list(x.shape[:2])}")
    self._check_ids(ids)
    segments = jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments
    positions = segment_positions(segments) if positions is None else positions
    if training:
      self.config.check(self.site, *x.shape[:2])
    groups = self.config.groups(*x.shape[:2], training=training)
    tokens, mask, ids, positions = (None if a is None else groups.cut(a) for a in (x, segments > 0, ids, positions))
    with jax.named_scope("router"):
      output = self.router(RouterInput(tokens, mask, ids, positions, key, x.shape[1]), training=training)
    drops = key if training and self.dropout else None
    return self._through_all(x, groups, output, drops), report_of(output, groups, segments > 0)

  def learn(self, *reports: LayerReport) -> None:
    """Moves the router's state once, after a training step on one batch, or on several micro-batches."""
    self.router.learn(jax.tree.map(lambda *each: jnp.stack(each), *(report.seen for report in reports)))

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """The router's state for decoding `batch` rows of `length` tokens."""
    return self.router.init_decode_state(batch, length)

  def decode(
    self, x: jax.Array, state: dict[str, jax.Array], *, segments: Any = None, ids: Any = None, positions: Any = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The next token of each sequence, `[B, 1, d]`, routed as `__call__` in evaluation routes the full sequence.

    Raises:
      ValueError: an input that the router needs is missing.
    """
    self._check_ids(ids)
    groups, mask = Groups(x.shape[0]), jnp.ones(x.shape[:2], bool) if segments is None else segments > 0
    tokens, mask, ids, positions = (None if a is None else groups.cut(a) for a in (x, mask, ids, positions))
    with jax.named_scope("router"):
      output, state = self.router.decode(RouterInput(tokens, mask, ids, positions), state)
    return self._through_all(x, groups, output), state

  def _check_ids(self, ids: jax.Array | None) -> None:
    if ids is None and self.config.reads_ids:
      raise ValueError(f"ids = None: expected int32 [B, T], which the router {self.config.name} reads")

  def _through_all(self, x: jax.Array, groups: Groups, output: RouterOutput, key: jax.Array | None = None) -> jax.Array:
    y = self._through_experts(x, groups, output.routing, key)
    if self.free is not None and output.free is not None:
      y += self.free(x, groups.join(output.free, *x.shape[:2]))
    y = y if self.gate_scale == 1 else y * self.gate_scale
    if self.shared is None:
      return y
    with jax.named_scope("experts"):
      return y + self.shared(x, rate=self.dropout, key=key_of("shared", key))

  @jax.named_scope("dispatch")
  def _through_experts(self, x: jax.Array, groups: Groups, routing: Routing, key: jax.Array | None = None) -> jax.Array:
    mesh, biases, x = current_mesh(), self.experts.biases, x.astype(self.experts.dtype)
    dropout = None if key is None else for_batch(self.dropout, key, groups, *x.shape[:2])
    if mesh is not None:
      y = over_mesh(mesh, x, groups, routing, self.experts, dropout)
    else:
      y = groups.join(one_device(groups.cut(x), routing, self.experts, self.experts.weights(), dropout), *x.shape[:2])
    return y if biases is None else y + groups.join(biases.after(routing, groups.size), *x.shape[:2]).astype(y.dtype)
