import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.routing import RouterConfig, Site
from moe.routing.top_k import TopKConfig
from moe.training.optimization.optimizer import Adafactor, AdamW, OptimizerConfig
from moe.training.optimization.schedule import Constant, ConstantRsqrt, Cosine, Linear, ScheduleConfig
from tests.models.tiny import config, router, stack


def rate(step, schedule, total=1000):
  """The learning rate of the update number `step`, counted from 1, with a peak of 2."""
  return schedule.make(2.0, total)(step - 1)


def test_warm_up_rises_linearly_to_the_peak_at_its_last_step():
  rates = [rate(step, Constant(warmup_steps=4)) for step in (1, 2, 3, 4, 5)]
  np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0])


def test_constant_rsqrt_is_constant_and_then_falls_as_the_inverse_square_root():
  rates = [rate(step, ConstantRsqrt(decay_start=100)) for step in (1, 100, 400, 900)]
  np.testing.assert_allclose(rates, [2.0, 2.0, 1.0, 2.0 / 3.0], rtol=1e-6)


def test_cosine_is_halfway_at_half_time_and_ends_at_the_final_fraction():
  schedule = Cosine(warmup_steps=200, final_fraction=0.1)
  np.testing.assert_allclose([rate(s, schedule) for s in (200, 600, 1000)], [2.0, 1.1, 0.2], rtol=1e-6)


def test_linear_falls_in_a_straight_line_to_the_final_fraction():
  schedule = Linear(warmup_steps=200, final_fraction=0.5)
  np.testing.assert_allclose([rate(s, schedule) for s in (200, 400, 600, 1000)], [2.0, 1.75, 1.5, 1.0], rtol=1e-6)


def test_schedules_that_depend_on_the_length_of_the_run_say_so():
  for name, schedule in ScheduleConfig.choices.items():
    differs = rate(400, schedule(), total=1000) != rate(400, schedule(), total=2000)
    assert schedule.depends_on_length == differs, name


def updates_of(config, params, gradients, stacked=None):
  """What every step adds to the parameters; none of their axes are stacked unless given."""
  stacked = jax.tree.map(lambda _: 0, params) if stacked is None else stacked
  optimizer, schedule = config.make(stacked), config.make_schedule(100)
  state, found = optimizer.init(params), []
  for count, gradient in enumerate(gradients):
    update, state = optimizer.update(gradient, state, params)
    rate = schedule(count)
    update = jax.tree.map(lambda x, rate=rate: -rate * x, update)
    found.append(update)
    params = optax.apply_updates(params, update)
  return found


def plain(choice=Adafactor, **fields):
  return choice(schedule=Constant(), clip_norm=0.0, **fields)


def test_adafactor_of_one_vector_follows_its_equations():
  """No factoring for a vector: v_t = b_t v + (1 - b_t) g^2, u = g / sqrt(v) clipped to root mean square 1."""
  gradients = [np.array([3.0, -4.0, 1.0], np.float32), np.array([1.0, 8.0, -2.0], np.float32)]
  config = plain(learning_rate=0.5, parameter_scale=False)
  found = updates_of(config, jnp.ones(3), [jnp.asarray(g) for g in gradients])
  v = gradients[0] ** 2
  first = np.sign(gradients[0])
  decay = 1 - 2.0**-0.8
  v = decay * v + (1 - decay) * gradients[1] ** 2
  second = gradients[1] / np.sqrt(v)
  second /= max(1.0, np.sqrt(np.mean(second**2)))
  np.testing.assert_allclose(found[0], -0.5 * first, rtol=1e-5)
  np.testing.assert_allclose(found[1], -0.5 * second, rtol=1e-5)


def test_adafactor_of_a_large_matrix_is_factored_into_rows_and_columns():
  gradient = jax.random.normal(jax.random.key(0), (128, 256))
  (found,) = updates_of(plain(learning_rate=1.0, parameter_scale=False), jnp.ones((128, 256)), [gradient])
  rows, columns = jnp.mean(gradient**2, 1), jnp.mean(gradient**2, 0)
  expected = gradient / jnp.sqrt(rows[:, None] * columns[None] / rows.mean())
  expected /= jnp.maximum(1.0, jnp.sqrt(jnp.mean(expected**2)))
  np.testing.assert_allclose(found, -expected, rtol=1e-4, atol=1e-6)


def test_adafactors_second_moment_decays_by_at_most_its_upper_bound():
  """After many steps of gradient 1 and one of 10, v = 0.99 + 0.01 * 100, although 1 - t^-0.8 exceeds 0.99."""
  steps = 400
  assert 1 - steps**-0.8 > 0.99
  gradients = [jnp.ones(1)] * (steps - 1) + [jnp.full(1, 10.0)]
  found = updates_of(plain(learning_rate=1.0, parameter_scale=False, update_clip=1e9), jnp.ones(1), gradients)
  np.testing.assert_allclose(found[-1], -10 / np.sqrt(0.99 + 0.01 * 100), rtol=1e-3)


def test_parameter_scale_makes_the_step_relative_to_the_matrix():
  params = {"large": jnp.full(4, 5.0), "zero": jnp.zeros(4)}
  (found,) = updates_of(plain(learning_rate=0.1), params, [jax.tree.map(jnp.ones_like, params)])
  np.testing.assert_allclose(found["large"], -0.1 * 5.0, rtol=1e-5)
  np.testing.assert_allclose(found["zero"], -0.1 * 1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_stacked_layers_and_experts_are_updated_as_if_each_matrix_were_alone(name):
  """The scales differ by layer and expert, so a pooled statistic, clip or parameter scale would show."""
  layers, experts, shape = 3, 2, (128, 130)
  keys = jax.random.split(jax.random.key(1), 4)
  scales = 10.0 ** jnp.arange(layers * experts).reshape(layers, experts, 1, 1)
  weights = jax.random.normal(keys[0], (layers, experts, *shape)) * scales
  norms = jax.random.normal(keys[1], (layers, 7)) * scales[:, 0, :, 0]
  stacked = {"units": {"experts": {"up": weights}, "norm": norms}}
  gradients = jax.tree.map(lambda x: jnp.stack([jnp.sin(x), x**2 + 0.1]), stacked)
  gradients = [jax.tree.map(lambda x, i=i: x[i], gradients) for i in range(2)]

  def apart(tree):
    up, norm = tree["units"]["experts"]["up"], tree["units"]["norm"]
    matrices = {f"{i}.{j}": up[i, j] for i in range(layers) for j in range(experts)}
    return matrices | {f"norm{i}": norm[i] for i in range(layers)}

  config = plain(OptimizerConfig.choices[name], learning_rate=0.1, weight_decay=0.01)
  together = updates_of(config, stacked, gradients, {"units": {"experts": {"up": 2}, "norm": 1}})
  alone = updates_of(config, apart(stacked), [apart(g) for g in gradients])
  for one, other in zip(together, alone):
    for key, value in apart(one).items():
      np.testing.assert_allclose(value, other[key], rtol=2e-5, err_msg=key)


def test_weight_decay_applies_to_matrices_only():
  params = {"units": {"kernel": jnp.full((2, 3, 3), 2.0), "norm": jnp.full((2, 3), 2.0)}, "bias": jnp.full(3, 2.0)}
  zero = jax.tree.map(jnp.zeros_like, params)
  stacked = {"units": {"kernel": 1, "norm": 1}, "bias": 0}
  (found,) = updates_of(plain(AdamW, learning_rate=0.1, weight_decay=0.5), params, [zero], stacked)
  np.testing.assert_allclose(found["units"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
  np.testing.assert_array_equal(found["units"]["norm"], 0.0)
  np.testing.assert_array_equal(found["bias"], 0.0)


def test_adamw_of_one_step_moves_every_weight_by_the_learning_rate():
  (found,) = updates_of(plain(AdamW, learning_rate=0.1), jnp.ones(3), [jnp.array([0.5, -20.0, 3.0])])
  np.testing.assert_allclose(found, [-0.1, 0.1, -0.1], rtol=1e-5)


PARTS = ("router", "experts", "shared")


def layer_of(seed, parts=PARTS):
  """Something like the parameters of a MoE layer, by part."""
  draws = {name: np.random.default_rng([seed, index]) for index, name in enumerate(PARTS)}
  return {
    "moe": {name: {"kernel": jnp.asarray(draws[name].normal(size=(4, 3)), jnp.float32)} for name in parts},
    "norm": {},
  }


def update_of(config, parts=PARTS):
  """The first update of these parts, and the optimizer's state."""
  params, gradients = layer_of(0, parts), layer_of(1, parts)
  optimizer = config.make(jax.tree.map(lambda _: 0, layer_of(0)))
  updates, state = optimizer.update(gradients, optimizer.init(params), params)
  return {name: updates["moe"][name]["kernel"] for name in parts}, state


@pytest.mark.parametrize("choice", [Adafactor, AdamW])
@pytest.mark.parametrize(("field", "part"), [("router_learning_rate", "router"), ("expert_learning_rate", "experts")])
def test_routers_and_routed_experts_may_have_learning_rates_of_their_own(choice, field, part):
  """Whose factor is that of the whole step, weight decay included; a quarter is exact."""
  whole, _ = update_of(choice(weight_decay=0.1))
  scaled, _ = update_of(choice(weight_decay=0.1, **{field: 0.25}))
  for name in PARTS:
    np.testing.assert_array_equal(scaled[name], whole[name] * (0.25 if name == part else 1), err_msg=name)


@pytest.mark.parametrize("choice", [Adafactor, AdamW])
def test_what_is_frozen_has_no_update_no_statistics_and_no_part_in_clipping(choice):
  """The others move as if it were not there; it does not move although there is weight decay."""
  fields = {"weight_decay": 0.1, "clip_norm": 0.5}
  found, state = update_of(choice(frozen=("moe/router", "^moe/sha"), **fields))
  alone = choice(**fields).make({"moe": {"experts": {"kernel": 0}}, "norm": {}})
  params, gradients = layer_of(0, ["experts"]), layer_of(1, ["experts"])
  expected, expected_state = alone.update(gradients, alone.init(params), params)
  np.testing.assert_array_equal(found["experts"], expected["moe"]["experts"]["kernel"])
  np.testing.assert_array_equal([found["router"], found["shared"]], 0.0)
  assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(expected_state)]


@pytest.mark.parametrize(
  ("frozen", "message"),
  [
    (
      ["router", "moe/exprts"],
      r"frozen\[1\] = 'moe/exprts': expected to be found in the path of a parameter, such as m",
    ),
    (["^kernel"], r"frozen\[0\] = '\^kernel': .* such as .*moe/router/kernel"),
    (
      ["experts@2", "moe/shared@2"],
      r"frozen\[1\] = 'moe/shared@2': expected .* with an axis of experts, such as moe/ex",
    ),
    (["experts@4"], r"frozen\[0\] = 'experts@4': expected fewer than the 4 experts there are"),
    (["kernel"], r"frozen = \('kernel',\): expected to leave some parameter to train"),
  ],
)
def test_what_cannot_be_frozen_is_refused_by_name(frozen, message):
  config = Adafactor(frozen=tuple(frozen))
  with pytest.raises(ConfigError, match=f"^{message}"):
    config.check_frozen(layer_of(0), {"moe": {"router": {"bias": 0}}}, {"moe/experts/kernel": 4})


def test_the_first_experts_alone_can_be_frozen():
  """Of two patterns that find an array the larger number counts; as a whole it is trained."""
  config = Adafactor(frozen=("moe@2", "experts/kernel@3"))
  config.check_frozen(layer_of(0), {}, {"moe/experts/kernel": 4, "moe/router/kernel": 4})
  assert [config.frozen_experts(f"{part}/kernel") for part in ("moe/experts", "moe/router", "norm")] == [3, 2, 0]
  assert not config.is_frozen("moe/experts/kernel")
  with pytest.raises(ConfigError, match=r"frozen\[0\] = 'moe@0': expected at least the first expert"):
    Adafactor(frozen=("moe@0",))


def test_a_routers_state_can_be_frozen_by_its_path_too():
  config = Adafactor(frozen=("router/bias",))
  config.check_frozen(layer_of(0), {"moe": {"router": {"bias": 0}}}, {})
  assert config.is_frozen("moe/router/bias") and not config.is_frozen("moe/router/kernel")


def test_clipping_is_by_the_norm_of_all_gradients_together():
  """AdamW hides the size of a gradient unless epsilon dominates, so epsilon is large."""
  config = AdamW(schedule=Constant(), learning_rate=1.0, clip_norm=1.0, epsilon=1e6)
  params = {"a": jnp.ones(1), "b": jnp.ones(1)}
  (found,) = updates_of(config, params, [{"a": jnp.array([3.0]), "b": jnp.array([4.0])}])
  np.testing.assert_allclose([found["a"][0], found["b"][0]], [-0.6e-6, -0.8e-6], rtol=1e-4)


@pytest.mark.parametrize(
  ("choice", "fields"),
  [
    (Adafactor, {"learning_rate": 0.0}),
    (Constant, {"warmup_steps": -1}),
    (Adafactor, {"clip_norm": -1.0}),
    (Adafactor, {"b2": 1.0}),
    (AdamW, {"b1": 1.0}),
    (AdamW, {"expert_learning_rate": -0.5}),
    (ConstantRsqrt, {"decay_start": 0}),
    (Cosine, {"final_fraction": 2.0}),
  ],
)
def test_impossible_settings_are_refused_by_name(choice, fields):
  (name,) = fields
  with pytest.raises(ConfigError, match=f"^{name} = .*: expected "):
    choice(**fields)


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
@pytest.mark.parametrize("vocabulary", [24, None], ids=["text", "vision"])
def test_a_relative_step_moves_every_parameter_of_a_router(name, vocabulary):
  """Adafactor moves a parameter by a share of its own size, but for a floor of 1e-3. At 0 it would creep."""
  choice = RouterConfig.choices[name]
  if vocabulary is None and choice.reads_ids:
    return
  options = {"router_bias": True} if issubclass(choice, TopKConfig) else {}
  router = choice(**options).make(Site(64, 8, vocabulary), nnx.Rngs(0))
  assert_relative_steps_move(nnx.state(router, nnx.Param))


def test_a_relative_step_moves_every_parameter_of_a_model():
  for relative_bias in ("shared", "per_layer"):
    given = stack(router("noisy_top_k"), shared_experts=1)
    network = config(decoder=given, encoder=given, tie_embeddings=False, relative_bias=relative_bias).make(nnx.Rngs(0))
    assert_relative_steps_move(nnx.state(network, nnx.Param))


def assert_relative_steps_move(params):
  """One step of learning rate 0.01 moves each by more than 5 times what it would from 0."""
  optimizer = Adafactor(learning_rate=0.01, clip_norm=0, parameter_scale=True)
  for path, leaf in nnx.to_flat_state(params):
    value = leaf[...]
    transform = optimizer.make(0)
    gradient = jax.random.normal(jax.random.key(1), value.shape)
    updates, _ = transform.update(gradient, transform.init(value), value)
    size = optimizer.learning_rate * float(jnp.sqrt(jnp.mean(updates**2)))
    assert size > 5 * 0.01 * 1e-3 * 0.9, f"{'/'.join(map(str, path))} moves by {size:.1e}"
