import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.nn.activations import ACTIVATIONS
from moe.nn.feed_forward import FeedForward


def make(form, dtype=jnp.float32):
  return FeedForward(6, 10, form, dtype, rngs=nnx.Rngs(0))


def gelu(x):
  """The tanh approximation that T5 1.1 was trained with."""
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
  return x * (1 + np.vectorize(math.erf)(np.asarray(x, np.float64) / 2**0.5)) / 2


FORMS = {
  "relu": lambda x, n: np.maximum(x @ n.up[...], 0),
  "gelu": lambda x, n: gelu(x @ n.up[...]),
  "geglu": lambda x, n: gelu(x @ n.gate[...]) * (x @ n.up[...]),
  "swiglu": lambda x, n: x @ n.gate[...] / (1 + np.exp(-x @ n.gate[...])) * (x @ n.up[...]),
}


FORMS |= {
  "gelu_exact": lambda x, n: exact_gelu(x @ n.up[...]),
  "geglu_exact": lambda x, n: exact_gelu(x @ n.gate[...]) * (x @ n.up[...]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_its_formula(form):
  network, x = make(form), np.asarray(jax.random.normal(jax.random.key(1), (2, 3, 6)))
  np.testing.assert_allclose(network(x), FORMS[form](x, network) @ network.down[...], rtol=1e-4, atol=1e-5)


def test_the_two_gelus_are_those_of_t5_and_of_bert():
  assert float(ACTIVATIONS["gelu_exact"](jnp.float32(1))) == pytest.approx(0.8413447, abs=1e-6)
  assert float(ACTIVATIONS["gelu"](jnp.float32(1))) == pytest.approx(0.8411920, abs=1e-6)


def test_only_gated_forms_have_a_gate():
  assert make("gelu").gate is None
  assert make("swiglu").gate[...].shape == (6, 10)


def test_dropout_needs_a_key_and_acts_on_hidden_units():
  network, x = make("gelu"), jnp.ones((1, 6))
  plain = network(x)
  np.testing.assert_array_equal(network(x, rate=0.5), plain)
  draws = jnp.stack([network(x, rate=0.5, key=jax.random.key(seed)) for seed in range(400)])
  assert (draws[0] != plain).all()
  np.testing.assert_allclose(draws.mean(0), plain, atol=5 * float(draws.std(0).max()) / 20)
