"""Which part of the model an instruction belongs to: read from operation names, those that programs really have too."""

import collections
import inspect
import runpy

import jax
import jax.numpy as jnp
import pytest

from moe.parallel.mesh import make_mesh
from moe.planning import hlo
from moe.planning.compile import compile_step
from moe.planning.costs import program_costs
from moe.planning.parts import part_of
from moe.training.experiment import load_config
from tests.training.tiny import tiny_mapping

N, LAYERS = 16, 3
PRODUCT = 2 * N**3


@pytest.mark.parametrize(
  ("op_name", "part"),
  [
    ("jit(step)/jvp(attention)/dot_general", "attention"),
    ("jit(step)/transpose(jvp(vocabulary))/sharding_constraint", "vocabulary"),
    ("jit(step)/jvp()/while/body/closed_call/router/reduce_max", "router"),
    ("jit(step)/jvp()/while/body/feed_forward/dot_general", "feed-forward"),
    ("jit(step)/jvp(position_bias)/shmap_body/dot_general", "position bias"),
    ("jit(step)/optimizer/mul", "optimizer"),
    ("jit(step)/jvp()/while/body/dispatch/all_to_all", "dispatch and combine"),
    ("jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/dispatch/experts/mul", "experts"),
    ("jit(step)/jvp()/while/body/dispatch/combine/scatter-add", "dispatch and combine"),
    ("checkpoint/attention/transpose;checkpoint/attention/bhqk,bhkw->bhqw/transpose", "attention"),
    ("jit(step)/jvp()/while/body/add", "other"),
    ("jit(step)/jvp()/routers/my_attention/add", "other"),
    ("state.params['decoder']['attention']['query']", "other"),
    ("", "other"),
  ],
)
def test_the_innermost_scope_names_the_part(op_name, part):
  assert part_of(op_name) == part


@jax.custom_vjp
def expert(x, w):
  return jnp.tanh(x @ w)


def expert_backward(kept, gradient):
  x, w = kept
  gradient = gradient * (1 - jnp.tanh(x @ w) ** 2)
  return gradient @ w.T, x.T @ gradient


expert.defvjp(lambda x, w: (expert(x, w), (x, w)), expert_backward)


@jax.named_scope("attention")
def attend(x, w):
  return jnp.tanh(x @ w)


def loss(weights, x, attend=attend):
  """A scanned layer of two parts, one of them with its own gradient and inside another's scope; then a third part."""

  @jax.checkpoint
  def layer(x, weights):
    x = attend(x, weights[0])
    with jax.named_scope("dispatch"), jax.named_scope("experts"):
      return expert(x, weights[1]), None

  x, _ = jax.lax.scan(layer, x, weights)
  with jax.named_scope("vocabulary"):
    return jnp.square(x @ x).sum()


def compiled(f, *arguments):
  return jax.jit(f).lower(*arguments).compile().as_text()


def flops_by_part(text):
  found = collections.Counter()
  for cost in program_costs(hlo.parse(text), 1).costs:
    found[part_of(cost.op_name)] += cost.runs * cost.flops
  return {part: flops for part, flops in found.items() if flops}


WEIGHTS, X = jnp.ones((LAYERS, 2, N, N)), jnp.ones((N, N))
# Per layer and part: one product forward, one recomputed, two for the gradients.
PARTS = {"attention": 4 * LAYERS * PRODUCT, "experts": 4 * LAYERS * PRODUCT, "vocabulary": 3 * PRODUCT}


def test_forward_passes_are_attributed_in_and_after_a_loop():
  found = flops_by_part(compiled(loss, WEIGHTS, X))
  assert found == {"attention": LAYERS * PRODUCT, "experts": LAYERS * PRODUCT, "vocabulary": PRODUCT}


def test_backward_passes_belong_to_their_forward_passes():
  assert flops_by_part(compiled(jax.grad(loss), WEIGHTS, X)) == PARTS


def test_bodies_of_shard_map_keep_their_scopes():
  mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
  spec = jax.sharding.PartitionSpec()

  def sharded(weights, x):
    return jax.shard_map(loss, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)(weights, x)

  assert flops_by_part(compiled(jax.grad(sharded), WEIGHTS, X)) == PARTS


def test_a_function_in_another_file_is_still_the_same_part(tmp_path):
  file = tmp_path / "optimizer.py"
  file.write_text(f"import jax\nimport jax.numpy as jnp\n\n{inspect.getsource(inspect.unwrap(attend))}")
  moved = runpy.run_path(str(file))["attend"]
  assert inspect.getsourcefile(inspect.unwrap(moved)) == str(file)
  text = compiled(jax.grad(lambda weights, x: loss(weights, x, moved)), WEIGHTS, X)
  assert flops_by_part(text) == PARTS


def test_every_product_of_a_train_step_is_in_a_named_part(tmp_path):
  """Shared experts' are among those of the experts."""
  mapping = tiny_mapping(tmp_path / "corpus")
  mapping["model"]["encoder"]["moe"]["shared_experts"] = 1
  config = load_config(mapping)
  program = compile_step(config, make_mesh(config.mesh, jax.devices()[:1]))
  found = flops_by_part(program.text)
  tokens, d, f, experts = 4 * 16, config.model.d_model, config.model.d_ff, config.model.encoder.moe.num_experts
  # One MoE layer of capacity 2, and an expert of all tokens, with two matrices each; a forward pass and two products of
  # that size backward.
  assert found["experts"] == 3 * 2 * (2 * tokens + tokens) * 2 * d * f
  assert found["router"] == 3 * 2 * tokens * d * experts
  assert set(found) == {"experts", "router", "attention", "position bias", "feed-forward", "vocabulary"}
