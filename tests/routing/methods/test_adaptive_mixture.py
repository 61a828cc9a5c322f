"""The three losses of Jacobs et al. 1991 by their gradients and limits, and the dense mixture as a router."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.layer import MoE
from moe.routing import RouterConfig, Site
from moe.routing.methods.adaptive_mixture import competitive_loss, cooperative_loss, likelihood_loss, posterior
from tests.routing.naive import make, of_sequences, random_tokens, route

LOSSES = (cooperative_loss, competitive_loss, likelihood_loss)


def example(experts: int = 3, width: int = 2):
  """Outputs `[5, E, d]`, gates `[5, E]`, targets `[5, d]`."""
  keys = jax.random.split(jax.random.key(0), 3)
  outputs, target = jax.random.normal(keys[0], (5, experts, width)), jax.random.normal(keys[2], (5, width))
  return outputs, jax.nn.softmax(jax.random.normal(keys[1], (5, experts))), target


def output_gradient(loss):
  outputs, gates, target = example()
  return jax.jit(jax.grad(lambda outputs: loss(outputs, gates, target).sum()))(outputs)


def test_competing_experts_learn_in_proportion_to_their_gates():
  outputs, gates, target = example()
  expected = -2 * gates[..., None] * (target[:, None] - outputs)
  np.testing.assert_allclose(output_gradient(competitive_loss), expected, rtol=1e-5, atol=1e-6)


def test_under_the_likelihood_they_learn_in_proportion_to_their_posteriors():
  outputs, gates, target = example()
  expected = -posterior(outputs, gates, target)[..., None] * (target[:, None] - outputs)
  np.testing.assert_allclose(output_gradient(likelihood_loss), expected, rtol=1e-5, atol=1e-6)


def test_cooperating_experts_all_learn_the_residual_of_their_sum():
  outputs, gates, target = example()
  residual = target - (gates[..., None] * outputs).sum(1)
  expected = -2 * gates[..., None] * residual[:, None]
  np.testing.assert_allclose(output_gradient(cooperative_loss), expected, rtol=1e-5, atol=1e-6)


def test_the_posterior_is_a_distribution_that_leans_to_the_better_expert():
  outputs, gates, target = example()
  np.testing.assert_allclose(posterior(outputs, gates, target).sum(-1), 1.0, rtol=1e-6)
  equal = jnp.full_like(gates, 1 / 3)
  error = jnp.square(outputs - target[:, None]).sum(-1)
  np.testing.assert_array_equal(posterior(outputs, equal, target).argmax(-1), error.argmin(-1))


def test_the_competitive_loss_is_the_expected_loss_of_one_expert_drawn_by_the_gates():
  outputs, gates, target = example()
  drawn = jnp.stack([cooperative_loss(outputs, jnp.broadcast_to(one, gates.shape), target) for one in jnp.eye(3)], -1)
  np.testing.assert_allclose(competitive_loss(outputs, gates, target), (gates * drawn).sum(-1), rtol=1e-5)


def test_one_expert_makes_all_three_the_squared_error():
  outputs, gates, target = example(experts=1)
  error = jnp.square(outputs[:, 0] - target).sum(-1)
  for loss, factor in zip(LOSSES, (1, 1, 0.5), strict=True):
    np.testing.assert_allclose(loss(outputs, gates, target), factor * error, rtol=1e-5)


def test_the_likelihood_of_a_far_target_or_a_closed_gate_is_finite():
  outputs, target = jnp.array([[[0.0], [100.0]]]), jnp.array([[1000.0]])
  assert float(likelihood_loss(outputs, jnp.array([[0.5, 0.5]]), target)[0]) == pytest.approx(405_000.69, rel=1e-6)
  assert float(likelihood_loss(outputs, jnp.array([[1.0, 0.0]]), target)[0]) == pytest.approx(500_000)


X = jnp.linspace(-1, 1, 40)
FEATURES = jnp.stack([X, jnp.ones(40)], 1)
# Two segments, each linear, with opposite offsets: no one line fits them.
SEGMENTS = 4 * jnp.where(X < 0, 1 + X, X - 1)[:, None]


def lines(weights):
  """Outputs `[40, 2, 1]` of two linear experts, weights `[2, 2]`."""
  return (FEATURES @ weights.T)[..., None]


def test_an_em_step_never_lowers_the_likelihood():
  weights, shares = jax.random.normal(jax.random.key(1), (2, 2)), jnp.array([0.3, 0.7])

  @jax.jit
  def step(weights, shares):
    gates = jnp.broadcast_to(shares, (40, 2))
    h = posterior(lines(weights), gates, SEGMENTS)
    moments = jnp.einsum("ne,ni,nj->eij", h, FEATURES, FEATURES), jnp.einsum("ne,ni,n->ei", h, FEATURES, SEGMENTS[:, 0])
    solved = jax.vmap(jnp.linalg.solve)(moments[0], moments[1])
    return solved, h.mean(0), likelihood_loss(lines(weights), gates, SEGMENTS).sum()

  losses = []
  for _ in range(12):
    weights, shares, loss = step(weights, shares)
    losses.append(float(loss))
  assert (np.diff(losses) <= 1e-3).all(), losses
  assert losses[-1] < 0.5 * losses[0]


def test_the_likelihood_gives_the_segments_to_different_experts_sooner_than_cooperation_does():
  """Separation is 1 when the gate of one expert is open on one segment and shut on the other."""

  def separation(loss, scale, seed):
    keys = jax.random.split(jax.random.key(seed))
    params = 0.1 * jnp.stack([jax.random.normal(key, (2, 2)) for key in keys])

    def objective(params):
      gates = jax.nn.softmax(FEATURES @ params[1].T)
      return scale * loss(lines(params[0]), gates, SEGMENTS).mean()

    params = jax.lax.fori_loop(0, 200, lambda _, p: p - 0.3 * jax.grad(objective)(p), params)
    gate = jax.nn.softmax(FEATURES @ params[1].T)[:, 0]
    return 2 * jnp.abs((gate * jnp.sign(X)).mean())

  def median(loss, scale):
    return float(jnp.median(jax.jit(jax.vmap(functools.partial(separation, loss, scale)))(jnp.arange(8))))

  # Halved, the squared error is the likelihood of one expert: all three learn at the same rate where they agree.
  assert median(likelihood_loss, 1.0) > 0.7
  assert median(cooperative_loss, 0.5) < 0.2
  assert median(competitive_loss, 0.5) < 0.2


@pytest.mark.parametrize("options", [{}, {"capacity_factor": 4.0}], ids=["dropless", "slots"])
def test_every_token_goes_to_every_expert_with_its_probability(options):
  router, tokens = make("adaptive_mixture", **options), random_tokens(2, 8)
  expected = jax.nn.softmax(tokens @ router.kernel[...])
  for training in (True, False):
    output = route(router, tokens, training=training)
    np.testing.assert_allclose(of_sequences(output.routing, 2, 8), expected, rtol=1e-5)
    assert float(output.metrics["capacity_factor"]) == 4.0
    assert float(output.metrics["dropped"]) == 0.0


def test_the_layer_is_the_mixture_of_its_experts():
  layer = MoE(6, 3, 10, "adaptive_mixture", form="relu", rngs=nnx.Rngs(0))
  x = random_tokens(2, 5, d_model=6)
  y = nnx.jit(lambda layer: layer(x, segments=jnp.ones((2, 5), jnp.int32), training=True)[0])(layer)
  gates, experts = jax.nn.softmax(x @ layer.router.kernel[...]), layer.experts
  hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, experts.up[...]))
  expected = jnp.einsum("bte,btef,edf->btd", gates, hidden, experts.down[...])
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_slots_for_fewer_than_all_tokens_are_refused():
  choice = RouterConfig.choices["adaptive_mixture"]
  for options in ({"capacity_factor": 3.0}, {"capacity_factor": 4.0, "eval_capacity_factor": 3.0}):
    with pytest.raises(ConfigError, match=r"capacity_factor = 3\.0: every token goes to all 4 experts"):
      choice(**options).check(Site(8, 4), batch=2, length=8)
