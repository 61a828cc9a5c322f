"""Auxiliary losses at the points where their values are known."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from moe.routing.losses import balance_loss, importance_loss, load_loss, negative_entropy, normalized, router_z_loss
from tests.routing.naive import make, route

EXPERTS = 4
LOSSES_PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "losses.md").read_text()


def one_group(*rows):
  return jnp.array(rows)[None]


def everybody(group_tokens):
  return jnp.ones(group_tokens.shape[:2], bool)


@pytest.mark.parametrize("choices", [one_group([0], [1], [2], [3]), one_group([0, 1], [1, 2], [2, 3], [3, 0])])
def test_balance_loss_is_one_when_balanced_whatever_k(choices):
  probs = jnp.full((1, 4, EXPERTS), 1 / EXPERTS)
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(1.0)


@pytest.mark.parametrize(
  ("choices", "expected"), [(one_group([0], [0]), EXPERTS), (one_group([0, 1], [0, 1]), EXPERTS / 2)]
)
def test_balance_loss_of_a_collapsed_router_is_experts_over_k(choices, expected):
  k = choices.shape[-1]
  probs = jnp.broadcast_to(jnp.array([1 / k] * k + [0.0] * (EXPERTS - k)), (1, 2, EXPERTS))
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(expected)


def test_balance_loss_is_taken_in_each_group_where_capacity_is_counted():
  choices = jnp.array([[[0], [0]], [[1], [1]]])
  probs = jax.nn.one_hot(choices[..., 0], EXPERTS)
  # Pooled over the two groups it would be 2: each expert's buffer overflows all the same.
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(EXPERTS)


# Eight sequences of four tokens, each with an expert of its own, chosen with probability 0.9825.
OWN = jnp.repeat(jnp.arange(8)[:, None, None], 4, axis=1)
SPECIALISED = jnp.where(jax.nn.one_hot(OWN[..., 0], 8) > 0, 0.9825, 0.0025)


@pytest.mark.parametrize(("together", "expected"), [(None, 7.86), (4, 7.86), (16, 1.98), (32, 1.0)])
def test_sequences_that_specialise_are_balanced_with_each_other_but_not_each_by_itself(together, expected):
  found = balance_loss(SPECIALISED, OWN, everybody(OWN), together=together)
  assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ("options", "group"),
  [
    ({}, 7.86),
    ({"order": "choice"}, 1.0),
    ({"order": "choice", "group_size": 16}, 1.98),
    ({"capacity_factor": None}, 1),
  ],
)
def test_the_scope_of_the_balance_loss_has_nothing_to_do_with_the_groups(options, group):
  for scope, expected in {"group": group, "sequence": 7.86, "batch": 1.0}.items():
    router = make("token_choice", num_experts=8, d_model=8, top_k=1, balance_scope=scope, **options)
    router.kernel[...] = jnp.eye(8)
    found = route(router, jnp.log(SPECIALISED)).losses["balance"]
    assert float(found) == pytest.approx(expected, rel=1e-4), scope


@pytest.mark.parametrize("name", ["straight_through", "reinforce"])
def test_sampled_routers_have_a_scope_too(name):
  for scope, expected in {"sequence": 7.86, "batch": 1.0}.items():
    router = make(name, num_experts=8, d_model=8, balance_scope=scope)
    router.kernel[...] = jnp.eye(8)
    assert float(route(router, jnp.log(SPECIALISED)).losses["balance"]) == pytest.approx(expected, rel=1e-4), scope


@pytest.mark.parametrize(("over", "expected"), [("all", 1.2625), ("first", 1.575)])
def test_only_first_choices_count_if_asked(over, expected):
  probs = jnp.array([[[0.5, 0.3, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1], [0.1, 0.6, 0.2, 0.1]]])
  router = make("token_choice", d_model=4, balance_over=over)
  router.kernel[...] = jnp.eye(4)
  # p = (0.425, 0.3, 0.175, 0.1); f = (3, 3, 2, 0) / 8 of all choices, (3, 1, 0, 0) / 4 of the first.
  assert float(route(router, jnp.log(probs)).losses["balance"]) == pytest.approx(expected, rel=1e-5)


def hits_of(choices, experts: int = EXPERTS):
  """`[..., n, E]`, 1 where a token chose an expert."""
  return (np.asarray(choices)[..., None] == np.arange(experts)).sum(-2)


def pairs(p, c):
  """By layer and group of two rows, the shares of the choices and the mean probabilities of each expert."""
  return [
    (hits_of(c[layer, row : row + 2]).mean((0, 1)), p[layer, row : row + 2].mean((0, 1)))
    for layer in range(len(p))
    for row in (0, 2)
  ]


# By project: the balance loss of layers, from probabilities [L, B, T, E] and choices [L, B, T, k]. `docs/losses.md` has
# our settings for each: scope, first choices alone, over layers, factor.
PROJECTS = {
  "GShard": (
    lambda p, c: sum(EXPERTS * (f * q).sum() / 2 for f, q in pairs(p, c[..., :1])),
    ("group", "first", "sum", 1),
  ),
  "flaxformer": (
    lambda p, c: np.mean([EXPERTS**2 * (f * q).mean() for f, q in pairs(p, c)]),
    ("group", "all", "mean", "k"),
  ),
  "MaxText": (
    lambda p, c: EXPERTS**2 * (hits_of(c).mean(2) * p.mean(2)).mean(),
    ("sequence", "all", "mean", "k"),
  ),
  "Megatron-core `aux_loss`": (
    lambda p, c: sum(
      (probs.sum((0, 1)) * hits_of(of_layer).sum((0, 1))).sum() * EXPERTS / (2 * probs[..., 0].size ** 2)
      for probs, of_layer in zip(p, c, strict=True)
    ),
    ("batch", "all", "sum", 1),
  ),
  "Hugging Face Mixtral": (
    # Its layers are pooled: here they are alike.
    lambda p, c: EXPERTS * (hits_of(c).mean((0, 1, 2)) * p.mean((0, 1, 2))).sum(),
    ("batch", "all", "mean", "k"),
  ),
}


@pytest.mark.parametrize("project", PROJECTS)
def test_weights_of_other_projects_are_converted_as_the_documentation_says(project):
  theirs, (scope, over, layers, factor) = PROJECTS[project]
  row = next(line for line in LOSSES_PAGE.splitlines() if line.startswith(f"| {project}"))
  assert row.strip("| ").split(" | ")[-4:] == ["k w" if factor == "k" else "w", scope, over, layers]
  logits = np.random.default_rng(0).normal(size=(3, 4, 6, EXPERTS)).astype(np.float32)
  logits = np.broadcast_to(logits[:1], logits.shape) if "Mixtral" in project else logits
  router = make("gshard", d_model=EXPERTS, group_size=12, balance_scope=scope, balance_over=over)
  router.kernel[...] = jnp.eye(EXPERTS)
  each = [float(route(router, jnp.asarray(of_layer)).losses["balance"]) for of_layer in logits]
  ours = (np.sum(each) if layers == "sum" else np.mean(each)) * (2 if factor == "k" else 1)
  probs, choices = np.asarray(jax.nn.softmax(jnp.asarray(logits))), np.argsort(-logits, axis=-1)[..., :2]
  assert ours == pytest.approx(theirs(probs, choices), rel=1e-5)


def test_groups_count_by_their_real_tokens():
  choices = jnp.array([[[0], [0], [0]], [[0], [1], [0]]])
  probs = jax.nn.one_hot(choices[..., 0], EXPERTS)
  mask = jnp.array([[True, True, True], [True, True, False]])
  # Group 0: all on one expert, 4. Group 1: two real tokens on two experts, 2.
  assert float(balance_loss(probs, choices, mask)) == pytest.approx((3 * 4 + 2 * 2) / 5)


def test_balance_loss_pushes_probability_away_from_the_crowded_expert():
  choices = one_group([0], [0], [0], [1])
  gradient = jax.grad(lambda p: balance_loss(p, choices, everybody(choices)))(jnp.full((1, 4, EXPERTS), 0.25))
  np.testing.assert_allclose(gradient[0, 0], np.array([3, 1, 0, 0]) / 4, rtol=1e-6)


def test_importance_loss_is_zero_when_equal_and_experts_minus_one_when_collapsed():
  mask = jnp.ones((1, 3), bool)
  assert float(importance_loss(jnp.full((1, 3, EXPERTS), 0.25), mask)) == pytest.approx(0)
  collapsed = jnp.broadcast_to(jax.nn.one_hot(2, EXPERTS), (1, 3, EXPERTS))
  assert float(importance_loss(collapsed, mask)) == pytest.approx(EXPERTS - 1)


def test_load_loss_is_the_variation_of_the_chance_to_be_chosen_under_fresh_noise():
  rng, k, std, n = np.random.default_rng(0), 2, 0.7, 6
  logits = rng.normal(size=(1, n, EXPERTS)).astype(np.float32)
  noisy = logits + std * rng.normal(size=logits.shape).astype(np.float32)
  redrawn = logits + std * rng.normal(size=(20_000, *logits.shape[1:]))
  load = np.zeros(EXPERTS)
  for expert in range(EXPERTS):
    others = np.sort(np.delete(noisy[0], expert, axis=-1), axis=-1)[:, ::-1]
    load[expert] = (redrawn[..., expert] > others[:, k - 1]).mean(0).sum()
  got = load_loss(jnp.array(logits), jnp.array(noisy), k, std, jnp.ones((1, n), bool))
  assert float(got) == pytest.approx(load.var() / load.mean() ** 2, rel=0.05)


def test_the_load_loss_of_vmoe_s_code_has_the_k_th_highest_of_all_as_its_bar():
  # k = 1 of 2 experts: the bar is the higher noisy logit, also for the expert it belongs to.
  clean, drawn = np.float32([[[0.2, -0.1], [0.5, 0.3]]]), np.float32([[[0.7, 0.1], [-0.2, 0.9]]])
  load = norm.cdf((clean - np.float32([[[0.7], [0.9]]])) / 0.5).sum((0, 1))
  found = load_loss(clean, drawn, 1, 0.5, jnp.ones((1, 2), bool), "all")
  assert float(found) == pytest.approx(float(load.var() / load.mean() ** 2), rel=1e-5)
  assert float(load_loss(clean, drawn, 1, 0.5, jnp.ones((1, 2), bool))) != pytest.approx(float(found), rel=0.01)


def test_shares_and_their_slopes_are_right_however_small_the_values_and_0_where_they_underflow():
  values = jnp.array([[3e-29, 1e-29], [2e-20, 6e-20], [3e-37, 1e-37], [0.0, 0.0], [1.0, 3.0]])
  np.testing.assert_allclose(normalized(values), [[0.75, 0.25], [0.25, 0.75], [0, 0], [0, 0], [0.25, 0.75]], rtol=1e-5)
  # The slope of a / (a + b) with respect to a is b / (a + b)^2.
  slope = jax.grad(lambda v: normalized(v)[:, 0].sum())(values)
  np.testing.assert_allclose(slope[1, 0], 6e-20 / (8e-20 * 8e-20), rtol=1e-5)
  assert jnp.isfinite(1e6 * slope).all() and not slope[2:4].any()
  # A share of 1 has no slope of its own, and the slope -1 / a with respect to the other.
  np.testing.assert_allclose(jax.grad(lambda v: normalized(v)[0])(jnp.array([0.5, 0.0])), [0, -2], atol=1e-6)


def test_entropy_has_a_slope_where_a_probability_underflows():
  logits, mask = jnp.array([[[0.0, -200.0, 0.0, -1e4]]]), jnp.ones((1, 1), bool)
  value, slope = jax.value_and_grad(lambda x: negative_entropy(x, mask))(logits)
  assert float(value) == pytest.approx(-np.log(2), rel=1e-6)
  np.testing.assert_allclose(slope, jnp.zeros_like(logits), atol=1e-6)


def test_load_loss_has_a_gradient_though_the_choice_has_none():
  noise = 0.5 * jax.random.normal(jax.random.key(0), (1, 6, EXPERTS))
  loss = lambda logits: load_loss(logits, logits + noise, 1, 0.5, jnp.ones((1, 6), bool))  # noqa: E731
  logits = jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (1, 6, EXPERTS))
  lower = logits - 0.05 * jax.grad(loss)(logits)
  assert float(loss(lower)) < float(loss(logits))


@pytest.mark.parametrize("experts", [4, 16])
def test_z_loss_of_zero_logits_is_log_experts_squared(experts):
  mask = jnp.array([[True, True, False]])
  assert float(router_z_loss(jnp.zeros((1, 3, experts)), mask)) == pytest.approx(np.log(experts) ** 2, rel=1e-6)


@pytest.mark.parametrize("loss", ["balance", "importance", "load", "z"])
def test_padding_changes_no_loss_and_receives_no_gradient(loss):
  rng = np.random.default_rng(1)
  logits = jnp.array(rng.normal(size=(2, 5, EXPERTS)), jnp.float32)
  noise = jnp.array(rng.normal(size=logits.shape), jnp.float32)
  mask = jnp.array([[True, True, True, False, False], [True, False, True, True, False]])

  def value(logits):
    probs, choices = jax.nn.softmax(logits), jax.lax.top_k(logits, 2)[1]
    return {
      "balance": lambda: balance_loss(probs, choices, mask),
      "importance": lambda: importance_loss(probs, mask),
      "load": lambda: load_loss(logits, logits + noise, 2, 1.0, mask),
      "z": lambda: router_z_loss(logits, mask),
    }[loss]()

  garbage = jnp.where(mask[..., None], logits, 30 * noise)
  assert float(value(garbage)) == pytest.approx(float(value(logits)), rel=1e-6)
  gradient = jax.grad(value)(logits)
  np.testing.assert_array_equal(gradient[~mask], 0)
  assert (gradient[mask] != 0).any()


def test_a_batch_of_padding_alone_costs_nothing():
  zeros, mask = jnp.zeros((1, 3, EXPERTS)), jnp.zeros((1, 3), bool)
  choices = jnp.zeros((1, 3, 1), jnp.int32)
  values = [balance_loss(zeros, choices, mask), importance_loss(zeros, mask), router_z_loss(zeros, mask)]
  assert [float(v) for v in values] == [0, 0, 0]
