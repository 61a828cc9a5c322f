"""Decoding token by token with a cache gives the logits of teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.models import shift_right
from moe.models.placement import Last, Listed
from tests.models.tiny import (
  ARCHITECTURES,
  CAUSAL,
  EXPERT_CHOICE,
  TIGHT_SWITCH,
  batch,
  config,
  model,
  output,
  packed,
  stack,
)
from tests.models.tiny import router as moe_router
from tests.slow import slow


def stepwise(network, example, row_length=None):
  """Logits `[B, T, V]` of `example["targets"]`, one token at a time; by default they are a whole row."""
  graph, variables = nnx.split(network)
  ids = shift_right(example["targets"], example["targets_segments"])
  prompted = example | {"prompt": example["targets"]}
  state = network.start(prompted, ids.shape[1], row_length or ids.shape[1])

  @jax.jit
  def all_steps(variables, state):
    def step(state, tokens):
      logits, state = nnx.merge(graph, variables).step(tokens, state)
      return state, logits

    return jax.lax.scan(step, state, ids.T)[1]

  return all_steps(variables, state).swapaxes(0, 1)


@pytest.mark.parametrize("router", CAUSAL)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_equal_teacher_forcing_at_every_position(architecture, router):
  alone = moe_router("expert_choice", group_size=6)  # a group is a sequence of `batch`
  encoder = alone if architecture == "encoder_decoder" and router != "dense" else None
  network = model(config(architecture, stack(CAUSAL[router], layers=4), encoder))
  example = batch(rows=3, targets=16)
  whole = output(network, example)
  if router == "tight_switch":
    assert (whole.metrics["decoder"]["dropped"] > 0.1).all()
  np.testing.assert_allclose(stepwise(network, example), whole.logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("placement", [slow(Last(2)), Listed((0, 1, 3, 4))], ids=lambda placement: placement.name)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_equal_teacher_forcing_wherever_the_moe_layers_are(architecture, placement):
  network = model(config(architecture, stack(TIGHT_SWITCH, layers=6, placement=placement)))
  example = batch(rows=3, targets=16)
  whole = output(network, example)
  assert (whole.metrics["decoder"]["dropped"] > 0.1).all()
  np.testing.assert_allclose(stepwise(network, example), whole.logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slots_are_those_of_a_row_of_training_however_much_is_written(architecture):
  """One slot per expert in rows of 8 tokens: the first 8 steps of 24 are those of 8, and then the slots are new."""
  network, long = model(config(architecture, TIGHT_SWITCH)), batch(rows=3, targets=24)
  short = {name: array if name.startswith("inputs") else array[:, :8] for name, array in long.items()}
  whole = output(network, short)
  assert (whole.metrics["decoder"]["dropped"] > 0.1).all()
  steps = stepwise(network, long, row_length=8)
  np.testing.assert_allclose(steps[:, :8], whole.logits, rtol=1e-4, atol=2e-5)
  assert np.abs(steps - stepwise(network, long, row_length=24))[:, 8:].max() > 0.01


def test_a_row_is_decoded_as_if_it_were_alone():
  """Although the encoder's router chooses among the tokens of the whole batch."""
  network, example = model(config(encoder=EXPERT_CHOICE, decoder=TIGHT_SWITCH)), batch(rows=3, targets=12)
  together = stepwise(network, example)
  for row in range(3):
    alone = {name: array[row : row + 1] for name, array in example.items()}
    np.testing.assert_allclose(together[row : row + 1], stepwise(network, alone), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(together[row : row + 1], output(network, alone).logits, rtol=1e-4, atol=2e-5)


def test_steps_attend_to_the_real_inputs_only():
  network = model(config())
  example = packed([[6], [6]], [[3], [8]])
  np.testing.assert_allclose(stepwise(network, example), output(network, example).logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_steps_have_float32_logits_near_teacher_forcing(architecture):
  network, example = model(config(architecture, dtype="bfloat16")), batch()
  whole, steps = output(network, example).logits, stepwise(network, example)
  assert steps.dtype == jnp.float32
  assert jnp.linalg.norm(steps - whole) < 0.05 * jnp.linalg.norm(whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_with_a_router_that_is_not_causal_is_refused(architecture):
  network = model(config(architecture, EXPERT_CHOICE, allow_future_leakage=True))
  with pytest.raises(ValueError, match=r"decoder\.moe\.router\.name = 'expert_choice'.*not causal"):
    network.start(batch() | {"prompt": jnp.zeros((2, 0), jnp.int32)}, 8, 8)
