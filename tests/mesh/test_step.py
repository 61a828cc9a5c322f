"""A whole training step gives the same losses and parameters on any mesh, with FSDP or without; and what it moves."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from moe.models.model_config import DepthConfig
from moe.parallel.mesh import MeshConfig, make_mesh, put_batch
from moe.training.optimization.optimizer import Adafactor, AdamW
from moe.training.optimization.schedule import Constant
from moe.training.state import abstract_model, abstract_state, keys, make_init
from moe.training.step import RunInputs, make_train_step
from tests.mesh.hlo import shapes
from tests.models import tiny
from tests.slow import slow

# Sizes that no two axes share, so that a shape in a compiled program tells what it is.
EXPERTS, WIDTH, HIDDEN = 8, 48, 56
LENGTHS = [[5, 3], [8], [6], [2, 2, 4]] * 4, [[4, 2], [6], [5], [1, 1, 4]] * 4

DECODERS = {
  "slots": {"decoder": tiny.router("glam")},
  "slots of a batch": {"decoder": tiny.router("expert_choice"), "allow_future_leakage": True},
  "ragged": {"decoder": tiny.router("dropless", top_k=2)},
  "soft": {"decoder": tiny.router("soft_moe"), "allow_future_leakage": True},
  "depth": {"decoder": tiny.router("glam"), "depth": DepthConfig(capacity=0.25), "allow_future_leakage": True},
}
INPUTS = RunInputs(np.asarray(jax.random.key_data(keys(0)[1])), np.float32(0.1))
# Sizes of data, expert and model, and FSDP: 2, 4 and 8 devices.
MESHES = [(1, 2, 1, False), (1, 4, 1, True), (2, 2, 2, True)]
QUICK = [("slots of a batch", MESHES[-1]), ("ragged", MESHES[-1])]  # what is tried without `--slow`


def start(mesh, *, decoder, encoder=None, depth=None, moe=(), fsdp=False, accumulation=1, optimizer=None, **model):
  """The compiled step of a model, and its first state; `moe` are fields of both stacks' MoE layers.

  SGD unless an `OptimizerConfig` is given.
  """
  moe = {"num_experts": EXPERTS, "d_ff": HIDDEN, **dict(moe)}
  stacks = tiny.stack(decoder, depth=depth, **moe), tiny.stack(encoder, **moe)
  architecture = "encoder_decoder" if encoder else "decoder"
  config = tiny.config(architecture, *stacks, **{"num_heads": 4, "d_model": WIDTH} | model)
  abstract = abstract_model(config.make, mesh, fsdp=fsdp)
  optimizer = optimizer.make(abstract.stacked) if optimizer else optax.identity()
  state = make_init(config.make, optimizer, abstract_state(abstract, optimizer, mesh), {})(keys(0)[0])
  options = {"accumulation": accumulation, "logits_z_loss": 1e-3, "byte_lengths": np.ones(tiny.VOCABULARY)}
  return make_train_step(abstract.graph, state, optimizer, **options), state


def batch(seed):
  return {name: np.asarray(value) for name, value in tiny.packed(*LENGTHS, seed=seed).items()}


def two_steps(shape, **settings):
  mesh = make_mesh(MeshConfig(*shape[:3]), jax.devices()[: np.prod(shape[:3])])
  step, state = start(mesh, fsdp=shape[3], **settings)
  metrics = []
  for seed in range(2):
    state, found = step(state, put_batch(mesh, batch(seed)), INPUTS)
    metrics.append(found)
  return jax.device_get((metrics, state))


@functools.cache
def alone(kind):
  return two_steps((1, 1, 1, False), **DECODERS[kind])


def assert_same(found, expected):
  jax.tree.map(lambda b: np.testing.assert_(np.isfinite(b).all()), expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)


@pytest.mark.parametrize(
  ("kind", "shape"),
  [
    pytest.param(kind, shape, id=f"{kind}-{shape}", marks=[] if (kind, shape) in QUICK else [pytest.mark.slow])
    for shape in MESHES
    for kind in DECODERS
  ],
)
def test_a_decoder_trains_the_same_on_every_mesh(kind, shape):
  assert_same(two_steps(shape, **DECODERS[kind]), alone(kind))


@functools.cache
def encoder_decoder(shape):
  settings = {
    "encoder": tiny.router("expert_choice"),
    "decoder": tiny.router("glam"),
    "accumulation": 2,
    "optimizer": Adafactor(schedule=Constant()),
    "moe": {"shared_experts": 1},
  }
  return two_steps(shape, **settings)


@pytest.mark.parametrize("shape", [(2, 2, 2, True), slow((1, 8, 1, False))], ids=str)
def test_an_encoder_decoder_trains_the_same_with_accumulation_and_adafactor(shape):
  assert_same(encoder_decoder(shape), encoder_decoder((1, 1, 1, False)))


def test_fsdp_gathers_a_devices_experts_and_never_all_of_them():
  mesh = make_mesh(MeshConfig(data=2, expert=4))
  step, state = start(mesh, fsdp=True, **DECODERS["slots"])
  gathered = shapes(step.lower(state, put_batch(mesh, batch(0)), INPUTS).compile(), "all-gather")
  of_experts = [shape for shape in gathered if HIDDEN in shape]
  assert of_experts, "FSDP's halves of expert weights are put together"
  assert {np.prod(shape) for shape in of_experts} == {EXPERTS // 4 * WIDTH * HIDDEN}
  rows = len(LENGTHS[0])
  assert not any(shape[:1] == (rows,) and WIDTH in shape for shape in gathered), "tokens are gathered"


@pytest.mark.parametrize("kind", ["slots", slow("depth")])
def test_without_fsdp_no_parameter_is_gathered_and_no_token(kind):
  mesh = make_mesh(MeshConfig(data=2, expert=4))
  step, state = start(mesh, **DECODERS[kind])
  gathered = shapes(step.lower(state, put_batch(mesh, batch(0)), INPUTS).compile(), "all-gather")
  assert not any(WIDTH in shape or HIDDEN in shape for shape in gathered)
  assert not any(shape[:1] == (len(LENGTHS[0]),) for shape in gathered), "something of all rows is gathered"


@pytest.mark.parametrize("fsdp", [slow(False), True])
def test_parameters_and_statistics_are_divided_by_the_names_of_their_axes(fsdp):
  mesh = make_mesh(MeshConfig(data=2, expert=2, model=2))
  rows, data = (("expert", "data"), "data") if fsdp else (None, None)
  parameters = {
    "attention.query": (None, rows, "model"),
    "attention.out": (None, ("model", *rows), None) if fsdp else (None, "model", None),
    "feed_forward.up": (None, rows, "model"),
    "feed_forward.down": (None, ("model", *rows), None) if fsdp else (None, "model", None),
    "moe.experts.up": (None, "expert", data, "model"),
    "moe.experts.down": (None, "expert", None, ("model", data) if fsdp else "model"),
    "moe.router.kernel": (None, None, None),
    "embedding.table": ("model", None),  # of 24 rows, too few to divide further
  }
  statistics = {
    # Means of a matrix over its longer axis, and over its shorter one.
    "moe.experts.up.v_row": (None, "expert", data),
    "moe.experts.up.v_col": (None, "expert", "model"),
    "feed_forward.up.v_row": (None, rows),
    "feed_forward.up.v_col": (None, "model"),
  }
  # Of more than 128 columns and rows, so that Adafactor factors them.
  wide = DECODERS["slots"] | {"d_model": 128, "d_head": 32, "d_ff": 192, "moe": {"d_ff": 192}}
  _, factored = start(mesh, fsdp=fsdp, optimizer=Adafactor(), **wide)
  _, adam = start(mesh, fsdp=fsdp, optimizer=AdamW(), **wide)
  _, mu, *_ = adam.opt_state[1]
  for tree, wanted in ((adam.params, parameters), (mu, parameters), (factored.opt_state, statistics)):
    for name, spec in wanted.items():
      found = {leaf.sharding.spec for path, leaf in by_name(tree) if path.endswith(name)}
      assert {PartitionSpec(*entry) for entry in found} == {PartitionSpec(*spec)}, name


def by_name(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    parts = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
    yield ".".join(part for part in parts if isinstance(part, str)), leaf


# Of so many columns and rows that FSDP divides each matrix over all eight devices.
LARGE = DECODERS["slots"] | {
  "d_model": 128,
  "d_head": 32,
  "d_ff": 192,
  "moe": {"d_ff": 192, "layers": 4},
}  # so many that the scan over them is a loop


@functools.cache
def large_step(remat):
  mesh = make_mesh(MeshConfig(data=2, expert=4))
  step, state = start(mesh, fsdp=True, remat=remat, **LARGE)
  return step.lower(state, put_batch(mesh, batch(0)), INPUTS).compile()


def matrices(program, operation):
  """Shapes of a collective's results of which the last two axes are those of a large matrix, or of its shards."""
  return [shape for shape in shapes(program, operation) if len(shape) > 1 and shape[-1] in (128, 192)]


def test_fsdp_sums_gradients_into_shards():
  program = large_step("dots")
  scattered = {shape[-2] for shape in matrices(program, "reduce-scatter")}
  # Over the four devices of `expert`, then over two of `data`; experts over these alone.
  assert scattered == {128 // 4, 128 // 8, 192 // 4, 192 // 8, 128 // 2}
  whole = [shape for shape in matrices(program, "all-reduce") if shape[-2] in (128, 192)]
  assert not whole, "gradients of whole matrices travel"


@pytest.mark.slow
def test_weights_that_are_kept_are_gathered_once():
  twice, once = (len(matrices(large_step(remat), "all-gather")) for remat in ("dots", "dots_and_weights"))
  assert twice == 2 * once > 0
