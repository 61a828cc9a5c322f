import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx

from moe.config import ConfigError
from moe.evaluation.decoding import Sampling, generate, sample
from tests.models.tiny import (
  ARCHITECTURES,
  DROPLESS,
  EXPERT_CHOICE,
  TIGHT_SWITCH,
  VOCABULARY,
  batch,
  config,
  logits,
  model,
)

DRAWS = 20_000


def prompted(example, prompt=None):
  prompt = jnp.zeros((2, 0), jnp.int32) if prompt is None else jnp.asarray(prompt, jnp.int32)
  return {name: array for name, array in example.items() if name.startswith("inputs")} | {"prompt": prompt}


def ending(network, after: int, end: int = 1):
  """The same model, except that `end` is the likeliest token after the token `after`, recognised by its embedding."""
  graph, variables = nnx.split(network)
  table = variables["embedding"]["table"][...]
  variables["embedding"]["head"][...] = variables["embedding"]["head"][...].at[:, end].set(100 * table[after])
  return nnx.merge(graph, variables)


def draws(values, top_p=1.0):
  tiled = jnp.tile(jnp.asarray(values), (DRAWS, 1))
  return np.bincount(
    np.asarray(sample(tiled, top_p, jax.random.split(jax.random.key(0), DRAWS))), minlength=len(values)
  )


def test_samples_follow_the_softmax():
  values = np.array([0.3, -1.0, 2.0, 0.0, 1.1])
  assert scipy.stats.chisquare(draws(values), DRAWS * scipy.special.softmax(values)).pvalue > 1e-3


def test_samples_from_a_nucleus_follow_the_renormalised_softmax():
  """Among 0.5, 0.3, 0.15, 0.05, the fewest that reach 0.7 are the first two."""
  counts = draws(jnp.log(jnp.array([0.15, 0.5, 0.05, 0.3])), top_p=0.7)
  assert counts[0] == counts[2] == 0
  assert scipy.stats.chisquare(counts[[1, 3]], DRAWS * np.array([0.5, 0.3]) / 0.8).pvalue > 1e-3


def test_the_smallest_nucleus_is_the_likeliest_token():
  values = jax.random.normal(jax.random.key(1), (50, 9))
  np.testing.assert_array_equal(sample(values, 1e-9, jax.random.split(jax.random.key(0), 50)), values.argmax(-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_takes_the_likeliest_token_of_teacher_forcing_except_padding(architecture):
  network, example = model(config(architecture, DROPLESS)), batch(targets=7)
  found = generate(network, prompted(example), 7, 7)
  forced = logits(network, example | {"targets": found})
  likeliest = forced.at[..., 0].set(-jnp.inf).argmax(-1)
  for row in range(2):
    ended = np.flatnonzero(found[row] == 1)
    real = ended[0] + 1 if ended.size else 7
    np.testing.assert_array_equal(found[row, :real], likeliest[row, :real])
    np.testing.assert_array_equal(found[row, real:], 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_low_temperature_or_a_small_nucleus_is_greedy(architecture):
  network, example = model(config(architecture)), prompted(batch())
  greedy = generate(network, example, 7, 7)
  for sampling in (Sampling(temperature=1e-4), Sampling(temperature=1.0, top_p=1e-6)):
    np.testing.assert_array_equal(generate(network, example, 7, 7, sampling), greedy)


def test_first_tokens_are_sampled_at_the_temperature():
  """4096 rows of one model: their first tokens must follow softmax(logits / temperature) without padding."""
  network, temperature, rows = model(config("decoder")), 2.0, 4096
  empty = {"prompt": jnp.zeros((rows, 0), jnp.int32)}
  found = generate(network, empty, 1, 1, Sampling(temperature))[:, 0]
  first = logits(network, batch(rows=1, targets=1))[0, 0, 1:] / temperature
  expected = rows * scipy.special.softmax(np.asarray(first, np.float64))
  assert scipy.stats.chisquare(np.bincount(found, minlength=VOCABULARY)[1:], expected).pvalue > 1e-3


def test_same_seed_same_text_other_seed_other_text():
  network, example = model(config("decoder")), prompted(batch())

  def draw(seed):
    return generate(network, example, 12, 12, Sampling(1.5, seed=seed))

  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0) != draw(1)).any()


def test_prompts_of_different_lengths_are_kept_and_continued():
  network = model(config("decoder", DROPLESS))
  prompt = [[5, 9, 7, 3], [8, 0, 0, 0]]
  found = generate(network, {"prompt": jnp.array(prompt)}, 8, 8)
  np.testing.assert_array_equal(found[0, :4], prompt[0])
  assert found[1, 0] == 8
  for row, given in ((0, 4), (1, 1)):
    alone = generate(network, {"prompt": jnp.array([prompt[row][:given]])}, 8, 8)
    np.testing.assert_array_equal(found[row], alone[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_end_stops_a_row_and_zeros_follow(architecture):
  network = ending(config(architecture, tie_embeddings=False).make(nnx.Rngs(0)), after=6)
  found = generate(network, prompted(batch(), [[6], [6]]), 6, 6)
  np.testing.assert_array_equal(found, [[6, 1, 0, 0, 0, 0]] * 2)


def test_an_end_token_within_a_prompt_does_not_stop_it():
  network = model(config("decoder"))
  found = generate(network, {"prompt": jnp.array([[4, 1, 9, 9]])}, 6, 6)
  np.testing.assert_array_equal(found[0, :4], [4, 1, 9, 9])
  assert found[0, 4] != 0


def test_the_texts_beside_it_do_not_change_what_is_sampled():
  """Nor how many are continued at a time: row 2 of one batch is the first row of a batch that begins with number 2."""
  network, prompt = model(config("decoder", TIGHT_SWITCH)), [[5, 9], [7, 7], [3, 4]]
  together = generate(network, {"prompt": jnp.array(prompt)}, 12, 8, Sampling(1.0))
  alone = generate(network, {"prompt": jnp.array(prompt[2:])}, 12, 8, Sampling(1.0), first_row=2)
  np.testing.assert_array_equal(together[2], alone[0])
  assert (together[2] != generate(network, {"prompt": jnp.array(prompt[2:])}, 12, 8, Sampling(1.0))[0]).any()


def test_progress_is_told_until_every_row_has_ended():
  network, told = model(config("decoder")), []
  generate(network, {"prompt": jnp.full((1, 150), 5)}, 150, 150, progress=told.append)
  assert told == [64, 128, 150]
  network, told = ending(config("decoder", tie_embeddings=False).make(nnx.Rngs(0)), after=6), []
  generate(network, {"prompt": jnp.array([[6]])}, 1000, 8, progress=told.append)
  assert told == [2]


@pytest.mark.parametrize(
  ("field", "values"),
  [
    ("temperature", (-1.0, float("inf"), float("nan"), 1e300, 1e-300)),
    ("top_p", (0.0, 1.5, -1.0, float("nan"), float("inf"))),
    ("seed", (-1, 2**32, 10**30)),
  ],
)
def test_sampling_options_out_of_range_are_refused(field, values):
  for value in values:
    with pytest.raises(ConfigError) as caught:
      Sampling(**{field: value})
    assert caught.value.field == field


def test_a_prompt_that_leaves_no_room_is_refused():
  with pytest.raises(ConfigError, match="prompt = 3: expected at most max_length = 2"):
    generate(model(config("decoder")), {"prompt": jnp.array([[5, 6, 7]])}, 2, 2)


def test_generation_with_a_router_that_is_not_causal_is_refused():
  network = model(config("decoder", EXPERT_CHOICE, allow_future_leakage=True))
  with pytest.raises(ValueError, match="not causal"):
    generate(network, {"prompt": jnp.array([[5]])}, 4, 4)
