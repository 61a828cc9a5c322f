"""Our encoder-decoder with Hugging Face's weights computes Hugging Face's T5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.evaluation.decoding import generate
from tests.models.hf_t5 import Reference


def assert_agree(found, expected, name=""):
  """To 1e-5, of the array's largest entry where that is above 1.

  Of the largest and not of each: T5's attention logits are not scaled, which amplifies rounding.
  """
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name)


@pytest.fixture(scope="module", params=["hf_t5_v11_gated_gelu", "hf_t5_v10_relu_tied"])
def reference(request, parity_dir) -> Reference:
  return Reference(parity_dir / f"{request.param}.npz")


@pytest.fixture(scope="module")
def model(reference):
  return reference.model()


def loss_of(model, batch):
  logits = model(batch, training=False).logits
  log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
  return -(log_probability * batch["loss_weights"]).sum() / batch["loss_weights"].sum()


def test_encoder_output_at_real_tokens(reference, model):
  real = reference.arrays["in_mask"] == 1
  assert_agree(model.encode(reference.batch()).x[real], reference.arrays["out_enc"][real])


def test_logits_at_every_position(reference, model):
  output = model(reference.batch(), training=False)
  expected, rows = reference.arrays["out_logits"], np.ones(output.logits.shape[:2], bool)
  if not reference.scaled:
    # Evaluated in float64, these weights give logits up to 17.8. The reference's float32 is off from those by 6.0e-4
    # in this one row and by at most 1.0e-4 in the others; ours by at most 8.9e-5 in any. So here it marks nothing.
    rows[0, 9] = False
    np.testing.assert_allclose(output.logits[0, 9], expected[0, 9], rtol=0, atol=1e-3)
  assert_agree(output.logits[rows], expected[rows])


def test_loss_leaves_out_ignored_labels(reference, model):
  assert_agree(loss_of(model, reference.batch()), reference.arrays["out_loss"])


def test_gradients_of_the_loss(reference, model):
  """In the Euclidean norm, to twice what float32 leaves of them.

  Evaluated in float64, the reference's own gradients are off by up to 1.3e-4 (T5 1.1) and 2.2e-5 (T5 1.0) of their
  norm, ours by up to 9.3e-5 and 2.5e-5: an agreement to 1e-5 would be an accident.
  """
  graph, params = nnx.split(model)
  gradients = jax.jit(jax.grad(lambda params: loss_of(nnx.merge(graph, params), reference.batch())))(params)
  found = {path: np.array(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
  if not reference.scaled:
    found["embedding", "table"] += found["embedding", "head"].T
  gradients, tolerance = list(reference.gradients(found)), 5e-5 if reference.scaled else 2e-4
  assert len(gradients) > 4
  for name, expected, ours in gradients:
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < tolerance, name


def test_greedy_ids(reference, model):
  expected = reference.arrays["out_greedy"][:, 1:]  # The first is the 0 that every decoder input begins with.
  np.testing.assert_array_equal(generate(model, reference.batch(), expected.shape[1], expected.shape[1]), expected)
