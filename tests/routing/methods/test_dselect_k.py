"""DSelect-k against its closed forms, the authors' numbers, and a dense mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.layer import MoE
from moe.routing import RouterConfig, Site
from moe.routing.methods import dselect_k as equations
from tests.routing.naive import make, random_tokens, route
from tests.routing.smooth import assert_gradient

DSELECT = RouterConfig.choices["dselect_k"]
smooth_step = jax.jit(equations.smooth_step, static_argnums=1)
single_selectors = jax.jit(equations.single_selectors, static_argnums=(1, 2))
mixture, selector_entropy, unreachable_penalty = map(
  jax.jit, (equations.mixture, equations.selector_entropy, equations.unreachable_penalty)
)


def random_codes(shape, seed: int = 0, width: float = 0.5):
  return jnp.asarray(np.random.default_rng(seed).uniform(-width, width, size=shape), jnp.float32)


def test_the_smooth_step_takes_its_closed_form_values():
  np.testing.assert_array_equal(
    smooth_step(jnp.array([-9, -0.5, -0.25, 0, 0.25, 0.5, 9]), 1.0), [0, 0, 0.15625, 0.5, 0.84375, 1, 1]
  )
  t = jnp.linspace(-0.9, 0.9, 50)
  np.testing.assert_allclose(smooth_step(t, 2.0), -2 * t**3 / 8 + 3 * t / 4 + 0.5, atol=1e-6)
  assert float(jax.grad(smooth_step)(0.0, 0.1)) == pytest.approx(15.0)


def test_a_selector_takes_its_closed_form_values():
  np.testing.assert_array_equal(single_selectors(jnp.array([0.25, -0.5]), 4, 1.0), [0.15625, 0, 0.84375, 0])
  assert float(selector_entropy(single_selectors(jnp.zeros((1, 2)), 4, 1.0))) == pytest.approx(np.log(4), abs=1e-5)
  three = single_selectors(jnp.zeros((1, 2)), 3, 1.0)
  assert float(three.sum()) == 0.75
  assert float(unreachable_penalty(three)) == pytest.approx(4 / 3)


@pytest.mark.parametrize("experts", [6, 8])
def test_a_selector_is_the_product_over_the_bits_of_an_experts_number(experts):
  z, selected = random_codes((5, 2, 3)), np.ones((5, 2, experts))
  step = np.asarray(smooth_step(z, 1.0))
  for expert in range(experts):
    for bit, digit in enumerate(np.binary_repr(expert, 3)):
      selected[..., expert] *= step[..., bit] if digit == "1" else 1 - step[..., bit]
  np.testing.assert_allclose(single_selectors(z, experts, 1.0), selected, atol=1e-6)


def test_weights_lie_in_the_simplex():
  q = np.asarray(mixture(single_selectors(random_codes((200, 3, 4), width=0.7), 16, 1.0), random_codes((200, 3), 1, 3)))
  assert (q >= 0).all()
  np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("code", range(8))
def test_binary_codes_select_the_expert_of_that_number(code):
  z = jnp.array([0.5 if digit == "1" else -0.5 for digit in np.binary_repr(code, 3)])
  np.testing.assert_array_equal(single_selectors(z, 8, 1.0), np.eye(8)[code])


def test_permuted_selectors_give_the_same_weights():
  z, alpha = random_codes((4, 3)), random_codes(4, 1)
  order = np.array([2, 0, 3, 1])
  weights = mixture(single_selectors(z, 8, 1.0), alpha)
  np.testing.assert_allclose(mixture(single_selectors(z[order], 8, 1.0), alpha[order]), weights, rtol=1e-6)


def test_weights_and_their_derivatives_are_continuous_where_top_k_jumps():
  """Across the knots of the smooth step, and across a tie: the largest change of one step of length h."""
  h = 1e-3
  path = jnp.arange(-0.7, 0.7, h)

  def dselect(t):
    return mixture(single_selectors(jnp.array([[t, 0.1], [0.2, t]]), 4, 1.0), jnp.array([0.3, 0.0]))

  def top_1(t):
    probs = jax.nn.softmax(jnp.array([t, 0.0, -1.0, -1.0]))
    return jnp.where(probs == probs.max(), probs, 0.0)

  def largest_change(values):
    return float(jnp.abs(jnp.diff(values, axis=0)).max())

  weights, derivatives, jumps = jax.jit(jax.vmap(lambda t: (dselect(t), jax.jacfwd(dselect)(t), top_1(t))))(path)
  assert largest_change(weights) < 1.5 * h
  assert largest_change(derivatives) < 6.1 * h + 1e-5
  assert largest_change(jumps) > 0.3


@pytest.mark.parametrize("experts", [8, 6])
@pytest.mark.parametrize("gate", ["static", "example"])
def test_the_gate_is_the_published_codes(gate, experts, parity_dir):
  """No difference in the functions; in the router, means over tokens stand where theirs are sums over the batch."""
  reference, prefix = np.load(parity_dir / "dselect_k.npz"), f"{gate}_{experts}_"
  found = lambda name: jnp.asarray(reference[prefix + name])  # noqa: E731
  z, alpha = ("z", "w") if gate == "static" else ("Wz", "Ww")

  def gates(z, alpha):
    if gate == "static":
      z, alpha = z[:, 0], alpha[:, 0]
    else:
      z, alpha = (found("in_x") @ z).reshape(-1, 2, 3), found("in_x") @ alpha
    selectors = single_selectors(z, experts, 1.0)
    weights = mixture(selectors, alpha)
    sums = (weights * found("in_g")).sum(), selector_entropy(selectors).sum(), unreachable_penalty(selectors).sum()
    return jnp.stack(sums), (weights, selectors)

  @jax.jit
  def with_gradients(*parts):
    sums, pull_back, aux = jax.vjp(gates, *parts, has_aux=True)
    return sums, aux, jax.vmap(pull_back)(jnp.eye(3))

  (_, entropy, unreachable), (weights, selectors), gradients = with_gradients(found(f"w_{z}"), found(f"w_{alpha}"))
  np.testing.assert_allclose(weights, found("out_weights"), atol=1e-5)
  np.testing.assert_allclose(selectors, found("out_selectors"), atol=1e-5)
  np.testing.assert_allclose(entropy, found("out_entropy"), rtol=1e-5)
  np.testing.assert_allclose(unreachable, found("out_unreachable"), rtol=1e-5)
  for output, name in enumerate(["grad", "grad_entropy", "grad_unreach"]):
    for gradient, part in zip(gradients, (z, alpha)):
      np.testing.assert_allclose(gradient[output], found(f"{name}_{part}"), rtol=1e-5, atol=1e-5)


# --- the router: dense while it is smooth, sparse once it is binary


def router_with(z_of, gate: str = "static", experts: int = 4, **options):
  router = make("dselect_k", num_experts=experts, gate=gate, **options)
  router.z[...] = z_of(router.z[...])
  return router


def assignments(router, tokens) -> np.ndarray:
  return np.asarray(route(router, tokens).routing.group_sizes)


def test_every_expert_is_run_while_the_selectors_are_smooth_and_k_once_they_are_binary():
  tokens = random_tokens(2, 16)
  assert assignments(router_with(jnp.zeros_like), tokens).sum() == 32 * 4
  binary = jnp.array([[0.5, -0.7], [-0.9, 0.6]])  # experts 2 and 1
  np.testing.assert_array_equal(assignments(router_with(lambda _: binary), tokens), [[0, 16, 16, 0]] * 2)
  half = binary.at[0, 1].set(0.2)  # the first selector still hesitates between 2 and 3
  np.testing.assert_array_equal(assignments(router_with(lambda _: half), tokens), [[0, 16, 16, 16]] * 2)


def test_of_an_example_at_most_k_experts_are_run_once_its_selectors_are_binary():
  router = router_with(lambda z: 1e5 * z, "per_example", experts=8)
  sparse = route(router, random_tokens(2, 16)).metrics["experts_per_token"]
  assert float(sparse[1] + sparse[2]) == pytest.approx(1.0)
  assert float(sparse[2]) > 0.5
  dense = route(router_with(jnp.asarray, "per_example", experts=8), random_tokens(2, 16)).metrics["experts_per_token"]
  assert float(dense[5]) == 1


def test_the_layer_is_the_dense_mixture_outputs_and_gradients():
  layer = MoE(8, 6, 5, {"name": "dselect_k", "entropy_loss": 0.0}, rngs=nnx.Rngs(0))
  graph, _ = nnx.split(layer)
  x, cotangent = random_tokens(2, 16), random_tokens(2, 16, seed=2)
  segments = jnp.ones((2, 16), jnp.int32)

  def sparse(params, x):
    output, report = nnx.merge(graph, params)(x, segments=segments, training=True)
    return (output * cotangent).sum(), report.routing.group_sizes.sum()

  def dense(params, x):
    layer = nnx.merge(graph, params)
    z, alpha = jnp.einsum("btd,dkm->btkm", x, layer.router.z[...]), x @ layer.router.alpha[...]
    weights = mixture(single_selectors(z, 6, 1.0), alpha)
    hidden = jax.nn.gelu(jnp.einsum("btd,edf->btef", x, layer.experts.up[...]))
    outputs = jnp.einsum("btef,edf->bted", hidden, layer.experts.down[...])
    return (jnp.einsum("bte,bted->btd", weights, outputs) * cotangent).sum()

  fast = jax.jit(jax.value_and_grad(sparse, argnums=(0, 1), has_aux=True))
  slow = jax.jit(jax.value_and_grad(dense, argnums=(0, 1)))
  z = layer.router.z[...]
  for size, most in ((20.0, 32 * 6), (100.0, 32 * 4)):
    layer.router.z[...] = size * z
    params = nnx.state(layer)
    ((value, assigned), gradients), (expected, expected_gradients) = fast(params, x), slow(params, x)
    assert most / 2 < int(assigned) < most
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


def test_the_gradient_of_all_parameters_agrees_with_finite_differences():
  graph, state = nnx.split(make("dselect_k", num_experts=6, entropy_loss=0.5))
  tokens, gain = random_tokens(2, 16), jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 6)), jnp.float32)
  state = jax.tree.map(lambda x: 10 * x, state)

  def value(parts):
    state, tokens = parts
    router = nnx.merge(graph, state)
    output = route(router, tokens, training=True)
    flat = jnp.moveaxis(gain, 2, 1).reshape(2, -1)  # everything is assigned: sorted by expert, then token
    return (output.routing.weight * flat).sum() + output.auxiliary_loss

  assert_gradient(value, (state, tokens), step=3e-3)


@pytest.mark.parametrize("gate", ["static", "per_example"])
def test_losses_are_means_over_real_tokens_so_the_batch_size_does_not_change_their_weight(gate):
  router = make("dselect_k", num_experts=6, gate=gate, entropy_loss=0.1)
  tokens = random_tokens(2, 16)
  once = route(router, tokens, training=True)
  mask = jnp.broadcast_to(jnp.array([True] * 4 + [False] * 2)[:, None], (6, 16))
  padded = route(router, jnp.tile(tokens, (3, 1, 1)).at[4:].multiply(3), mask=mask, training=True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), padded.losses, once.losses)
  expected = 0.1 * float(once.losses["entropy"]) + float(once.losses["unreachable"])
  assert float(once.auxiliary_loss) == pytest.approx(expected)


def test_a_power_of_two_has_no_unreachable_codes():
  assert route(make("dselect_k"), random_tokens(1, 8)).losses.keys() == {"entropy"}


def test_a_selector_wholly_on_codes_without_an_expert_stays_finite():
  lost = single_selectors(jnp.array([[9.0, 9.0]]), 3, 1.0)
  value, gradient = jax.value_and_grad(lambda r: unreachable_penalty(r))(lost)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_a_single_expert_takes_all():
  router = make("dselect_k", num_experts=1, k=1)
  routing = route(router, random_tokens(1, 8)).routing
  np.testing.assert_array_equal(routing.weight, np.ones((1, 8)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"k": 0}, "k = 0: expected at least 1"),
    ({"gamma": 0.0}, r"gamma = 0\.0: expected more than 0"),
    ({"entropy_loss": -1.0}, r"entropy_loss = -1\.0"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    DSELECT(**options)


def test_more_selectors_than_experts_are_refused():
  with pytest.raises(ConfigError, match="k = 5: expected at most the 4 experts there are"):
    DSELECT(k=5).check(Site(8, 4), batch=2, length=16)
