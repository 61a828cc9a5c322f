"""A layer gives the same numbers on any mesh, with every router, and only what must travel does."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.exchange.soft import check_soft_group
from moe.experts.layer import MoE
from moe.parallel.mesh import MeshConfig, make_mesh, replicated, rows, tracing_for
from moe.parallel.sharding import shard_parameters
from moe.routing import RouterConfig
from tests.mesh.hlo import collectives, shapes
from tests.slow import slow

# Sizes that no two axes share, so that a shape in a compiled program tells what it is.
BATCH, LENGTH, WIDTH, HIDDEN, EXPERTS, VOCABULARY = 8, 18, 44, 56, 16, 50
SLOTS = 3
KEYS = jax.random.split(jax.random.key(0), 3)
X, COTANGENT = (jax.random.normal(key, (BATCH, LENGTH, WIDTH)) for key in KEYS[:2])
SEGMENTS = jnp.ones((BATCH, LENGTH), jnp.int32).at[1, 9:].set(0)
POSITIONS = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
IDS = jax.random.randint(KEYS[2], (BATCH, LENGTH), 2, VOCABULARY)

# One of each way that tokens travel; a group is a sequence or the whole batch, which lies on all devices.
KINDS = {
  "slots of a sequence": ("expert_choice", {"group_size": LENGTH}),
  "slots of a batch": ("expert_choice", {"group_size": 0}),
  "slots by position": ("position_grouped", {}),
  "ragged of a sequence": ("dropless", {"group_size": LENGTH, "balance_scope": "batch"}),
  "ragged of a batch": ("dropless", {"group_size": 0, "balance_scope": "sequence"}),
  "ragged with room for all experts": ("relu", {}),
  "soft of a sequence": ("soft_moe", {}),
  "soft of a batch": ("soft_moe", {"group_size": BATCH * LENGTH, "slots": SLOTS}),
}
# In such an order that each kind of a whole batch has a mesh with experts over several devices without `--slow`.
SHAPES = [(1, 2, 1), (2, 2, 2), (1, 1, 2), (4, 1, 1), (4, 2, 1), (1, 4, 1), (8, 1, 1), (1, 8, 1)]


def kinds_and_shapes() -> list:
  """All pairs; the slow ones leave each kind one mesh, and each mesh one kind."""
  pairs = []
  for k, kind in enumerate(KINDS):
    for s, shape in enumerate(SHAPES):
      pairs.append(pytest.param(kind, shape, id=f"{kind}-{shape}", marks=[] if s == k else [pytest.mark.slow]))
  return pairs


def run(
  name: str, options: dict, shape: tuple[int, int, int], dropout: float = 0.0, bias: bool = False, fsdp: bool = False
):
  """What a training step takes from a layer, on a mesh of this shape, and the compiled program.

  The numbers: a scalar of output, auxiliary loss and policy; output, router's state afterwards, metrics; gradients.
  """
  config = RouterConfig.choices[name](**options)
  layer = MoE(WIDTH, EXPERTS, HIDDEN, config, dropout=dropout, bias=bias, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))
  for kernel in ("kernel", "free_kernel"):
    if (matrix := getattr(layer.router, kernel, None)) is not None:
      matrix[...] = jax.random.normal(jax.random.key(9), matrix.shape) / WIDTH**0.5
  graph, params, state = nnx.split(layer, nnx.Param, ...)
  mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])

  def objective(params, x, state, cotangent, segments, positions, ids):
    with tracing_for(mesh):
      layer = nnx.merge(graph, nnx.State(params), nnx.State(state), copy=True)
      key = jax.random.key(5)
      y, report = layer(x, segments=segments, ids=ids, positions=positions, training=True, key=key)
      layer.learn(report)
    value = jnp.vdot(y, cotangent) + report.auxiliary_loss
    if report.policy is not None:
      value += (report.policy.log_prob * cotangent[..., 0] + report.policy.baseline).sum()
    return value, (y, nnx.to_pure_dict(nnx.state(layer, nnx.Not(nnx.Param))), report.metrics)

  params = jax.device_put(nnx.to_pure_dict(params), shard_parameters(params, mesh, fsdp=fsdp))
  state = jax.device_put(nnx.to_pure_dict(state), replicated(mesh))
  x, *others = jax.device_put((X, COTANGENT, SEGMENTS, POSITIONS, IDS), rows(mesh))
  arguments = (params, x, state, *others)
  compiled = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)).lower(*arguments).compile()
  return jax.device_get(compiled(*arguments)), compiled


@functools.cache
def alone(name: str, options: tuple, dropout: float = 0.0, bias: bool = False):
  return run(name, dict(options), (1, 1, 1), dropout, bias)[0]


# With slots and without, unless `--slow`.
DROPPED = ("slots of a batch", "ragged of a batch")


@pytest.mark.parametrize("shape", [(2, 2, 2), slow((2, 4, 1))], ids=str)
@pytest.mark.parametrize("kind", [kind if kind in DROPPED else slow(kind) for kind in KINDS])
def test_the_same_hidden_units_are_dropped_on_every_mesh_and_biases_are_added(kind, shape):
  name, options = KINDS[kind]
  (_, expected), gradients = alone(name, tuple(options.items()), 0.4, bias=True)
  assert np.abs(expected[0] - alone(name, tuple(options.items()), bias=True)[0][1][0]).max() > 0.01
  (_, found), found_gradients = run(name, options, shape, 0.4, bias=True)[0]
  assert_same((found, found_gradients), (expected, gradients))


def assert_same(found, expected):
  def compare(path, a, b):
    assert np.isfinite(b).all(), jax.tree_util.keystr(path)
    # Sums over the batch may come in another order, so rounding is relative to the largest of an array.
    scale = max(1.0, float(np.max(np.abs(b), initial=0)))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))

  jax.tree_util.tree_map_with_path(compare, found, expected)


# Those whose way to travel another one or a kind has: with `--slow`.
ALIKE = {
  *("token_choice", "glam", "causal_gshard", "dropless", "expert_choice", "position_grouped", "relu", "soft_moe"),
  *("deepseek_v3", "expert_threshold", "reinforce", "noisy_rectifier", "stochastic_times_smooth", "rl_r"),
  *("switch", "noisy_top_k", "top_p", "straight_through", "batch_priority", "threshold", "quantile_balanced"),
  *("gshard", "hash", "capped_expert_choice", "moe_plus_plus", "sinkhorn_base", "dselect_k"),
  *("soft_expert_choice", "causal_soft_expert_choice"),
}


@pytest.mark.parametrize(
  "name",
  [slow(name) if name in ALIKE else name for name in sorted(RouterConfig.choices)],
)
def test_every_router_is_the_same_on_a_mesh_and_gathers_neither_tokens_nor_weights(name):
  found, compiled = run(name, {}, (2, 4, 1))
  assert_same(found, alone(name, ()))
  assert_only_what_must_travels(compiled, experts=EXPERTS // 4)


def test_experts_that_cost_nothing_are_the_same_where_fsdp_divides_their_parameters():
  found, _ = run("moe_plus_plus", {}, (2, 2, 2), fsdp=True)
  assert_same(found, alone("moe_plus_plus", ()))
  assert found[0][1][2]["free_share"] > 0.1


def test_a_choice_among_tokens_of_several_devices_leaves_no_conditional():
  """XLA's CPU backend does not order collectives in a conditional with others: processes could wait forever."""
  _, compiled = run("expert_choice", {}, (2, 4, 1))
  assert shapes(compiled, "all-to-all") and " conditional(" not in compiled.as_text()


@pytest.mark.parametrize("size", [48, 24], ids=["more than a device has", "fewer"])
def test_soft_groups_across_the_shards_of_devices_are_refused(size):
  """Each of 4 devices has 36 of the 144 tokens."""
  wanted = "expected a divisor of the 36 tokens of a device, or these times a divisor or a multiple of mesh.expert = 4"
  with pytest.raises(ConfigError) as caught:
    run("soft_moe", {"group_size": size}, (1, 4, 1))
  assert str(caught.value) == f"group_size = {size}: {wanted}"


def test_soft_groups_lie_on_a_device_or_divide_or_fill_rows_of_the_mesh():
  fitting = []
  for size in range(1, 6 * 12 + 1):
    with contextlib.suppress(ConfigError):
      check_soft_group(size, shard=6, row=4)
      fitting.append(size)
  assert fitting == [1, 2, 3, 6, 12, 24, 48, 72]


def assert_only_what_must_travels(compiled, experts: int):
  assert any(WIDTH in shape for shape in shapes(compiled, "all-to-all")), "no token travels to its expert"
  for kind, shape in collectives(compiled):
    if kind in ("all-gather", "collective-permute"):
      assert WIDTH not in shape and HIDDEN not in shape, f"{kind} of tokens or weights: {shape}"
    if kind == "all-reduce" and HIDDEN in shape:
      assert shape == (experts, WIDTH, HIDDEN), f"gradients of other devices' experts travel: {shape}"


@pytest.mark.parametrize(("kind", "shape"), kinds_and_shapes())
def test_every_way_to_travel_is_the_same_on_every_mesh(kind, shape):
  name, options = KINDS[kind]
  found, compiled = run(name, options, shape)
  assert_same(found, alone(name, tuple(options.items())))
  moved = [shape for name, shape in collectives(compiled) if name in ("all-gather", "all-to-all", "reduce-scatter")]
  if shape[1] > 1:
    assert any(WIDTH in array for array in moved), "no token travels to its expert"
  for array in shapes(compiled, "all-gather"):
    # The outputs of slots that mix a whole batch go to all who need a part of them.
    slots_of_a_batch = kind == "soft of a batch" and array == (EXPERTS, 1, SLOTS, WIDTH)
    assert slots_of_a_batch or not (WIDTH in array or HIDDEN in array), f"tokens or weights are gathered: {array}"
