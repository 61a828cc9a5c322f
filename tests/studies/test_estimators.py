"""The study `estimators`: its gates, the gradients that it enumerates, and its training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError
from moe.studies import Study
from moe.studies.claims.experiments import estimators
from moe.studies.claims.experiments.gates import FROZEN, GATES, gradient_moments, init, loss, trained
from moe.studies.reporting.results_file import analysis_of, file_text
from moe.studies.running.campaign import Campaign
from moe.studies.running.folder import Folder
from moe.studies.study import Inputs


def digits(number, seed=0):
  """Pictures whose class is where they are bright."""
  draw = np.random.default_rng(seed)
  y = draw.integers(10, size=number)
  x = draw.uniform(0, 0.3, (number, 20)).astype(np.float32)
  x[np.arange(number), 2 * y] += 0.7
  return x, y.astype(np.int32)


@pytest.mark.parametrize("name", GATES)
def test_a_tenth_of_the_gates_is_open_at_the_start(name):
  gate, shape = GATES[name], (40_000,)
  h = jax.jit(gate.unit)(jnp.full(shape, gate.start), gate.draw(jax.random.key(0), shape))
  assert float((h != 0).mean()) == pytest.approx(0.1, abs=0.006)  # 4 standard errors
  assert float(gate.rate(jnp.float32(gate.start))) == pytest.approx(0.1, abs=1e-4)


def test_enumerated_gradients_are_biased_or_not_as_the_paper_says():
  found = {name: gradient_moments(name, 20) for name in GATES}
  for name in ("reinforce", "noisy_rectifier"):
    assert found[name]["bias"] < 1e-5 and found[name]["cosine"] == pytest.approx(1, abs=1e-5), name
    assert found[name]["spread"] > 0.1, name
  for name in ("straight_through", "stochastic_times_smooth"):
    assert found[name]["bias"] > 0.1 and 0.3 < found[name]["cosine"] < 1, name


def test_one_gate_has_no_variance_with_the_best_baseline():
  assert gradient_moments("reinforce", 20, units=1)["spread"] < 1e-5


def test_reinforce_is_given_the_gradient_of_its_gates_by_choices_alone():
  """The mean over many draws of the surrogate's gradient of a bias is that of the expected loss, by differences."""
  x, y = (one[:1] for one in digits(1))
  weights = init("reinforce", 2, 2, 20, jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 20_000)
  gradient = jax.jit(jax.vmap(jax.grad(loss, has_aux=True), (None, None, None, None, 0, None)), static_argnums=5)
  found = np.asarray(gradient(weights, x, y, jnp.full(2, 2.0), keys, "reinforce")[0]["gate"]["out"][:, -1])
  exact = jax.grad(_expected)(weights, x, y)["gate"]["out"][-1]
  assert (abs(found.mean(0) - exact) < 4 * found.std(0) / len(keys) ** 0.5 + 1e-6).all()


def _expected(weights, x, y):
  """The mean loss over all four states of two gates, and the divergence."""
  affine = lambda x, w: x @ w[:-1] + w[-1]  # noqa: E731
  s = jax.nn.sigmoid(affine(jnp.tanh(affine(x, weights["gate"]["in"])), weights["gate"]["out"]))[0]
  units = jax.nn.relu(affine(x, weights["main"]["in"]))[0]
  states = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
  costs = -jax.nn.log_softmax(affine(states * units, weights["main"]["out"]))[:, y[0]]
  divergence = 0.1 * jnp.log(0.1 / s) + 0.9 * jnp.log(0.9 / (1 - s))
  return jnp.where(states == 1, s, 1 - s).prod(1) @ costs + 0.1 * divergence.sum()


def test_frozen_gates_keep_their_weights_and_all_others_learn():
  x, y = digits(40)
  start = init(FROZEN, 6, 3, 20, jax.random.split(jax.random.key(0), 3)[0])
  found = trained(FROZEN, (6, 3, 1), (x, y), 0.01, 1.0, jax.random.key(0))
  for layer in ("in", "out"):
    np.testing.assert_allclose(found["gate"][layer], start["gate"][layer], rtol=1e-5, atol=1e-6)
    assert abs(found["main"][layer] - start["main"][layer]).max() > 1e-3


def test_a_data_dir_that_is_none_and_one_without_mnist_are_one_line(tmp_path):
  study = estimators.Estimators()
  with pytest.raises(ConfigError, match="--data_dir = 'nowhere': expected a TFDS directory with mnist"):
    study.check_inputs("cpu", Inputs("", "nowhere"))
  with pytest.raises(ConfigError, match="expected a TFDS directory with mnist"):
    study.check_inputs("cpu", Inputs("", str(tmp_path)))


def test_the_study_goes_from_its_first_experiment_to_its_verdicts(tmp_path, here, monkeypatch):
  monkeypatch.setattr(estimators, "read_digits", lambda *_: (digits(64), digits(32, 1), digits(32, 2)))
  study, folder, inputs = Study.choices["estimators"](), Folder(tmp_path / "study"), Inputs("", str(tmp_path))
  arms = {arm: study.arms[arm] for arm in ("straight_through", "noisy_rectifier", FROZEN)}
  monkeypatch.setattr(estimators.Estimators, "arms", arms)
  campaign = Campaign(study, "smoke", inputs, folder)
  campaign.run(1, "abc")
  text = file_text(analysis_of(study, "smoke", campaign.jobs, folder))
  analysis = json.loads(text)
  assert (analysis["failed"], analysis["finished"], analysis["runs"]) == ({}, 7, 7)
  assert [one["claim"] for one in analysis["contrasts"]] == [
    f"straight_through has a lower test error than {other}" for other in ("noisy_rectifier", FROZEN)
  ]
  headline = study.headline(analysis)
  assert headline.seeds == 2 and headline.control == analysis["contrasts"][-1]["verdict"]
  assert len(study.lines(analysis)) > 8 and study.draw(analysis, tmp_path / "figure.png")
  assert str(tmp_path) not in text  # no path of a machine
