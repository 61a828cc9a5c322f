import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx

from moe.config import ConfigError
from moe.evaluation.decoding import generate, sample
from tests.models.tiny import ARCHITECTURES, DROPLESS, EXPERT_CHOICE, VOCABULARY, batch, config, logits, model

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
  return np.bincount(np.asarray(sample(tiled, top_p, jax.random.key(0))), minlength=len(values))


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
  np.testing.assert_array_equal(sample(values, 1e-9, jax.random.key(0)), values.argmax(-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_takes_the_likeliest_token_of_teacher_forcing_except_padding(architecture):
  network, example = model(config(architecture, DROPLESS)), batch(targets=7)
  found = generate(network, prompted(example), 7)
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
  greedy = generate(network, example, 7)
  key = jax.random.key(0)
  np.testing.assert_array_equal(generate(network, example, 7, temperature=1e-4, key=key), greedy)
  np.testing.assert_array_equal(generate(network, example, 7, temperature=1.0, top_p=1e-6, key=key), greedy)


def test_first_tokens_are_sampled_at_the_temperature():
  """4096 rows of one model: their first tokens must follow softmax(logits / temperature) without padding."""
  network, temperature, rows = model(config("decoder")), 2.0, 4096
  empty = {"prompt": jnp.zeros((rows, 0), jnp.int32)}
  found = generate(network, empty, 1, temperature=temperature, key=jax.random.key(0))[:, 0]
  first = logits(network, batch(rows=1, targets=1))[0, 0, 1:] / temperature
  expected = rows * scipy.special.softmax(np.asarray(first, np.float64))
  assert scipy.stats.chisquare(np.bincount(found, minlength=VOCABULARY)[1:], expected).pvalue > 1e-3


def test_same_key_same_text_other_key_other_text():
  network, example = model(config("decoder")), prompted(batch())

  def draw(seed):
    return generate(network, example, 12, temperature=1.5, key=jax.random.key(seed))

  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0) != draw(1)).any()


def test_prompts_of_different_lengths_are_kept_and_continued():
  network = model(config("decoder", DROPLESS))
  prompt = [[5, 9, 7, 3], [8, 0, 0, 0]]
  found = generate(network, {"prompt": jnp.array(prompt)}, 8)
  np.testing.assert_array_equal(found[0, :4], prompt[0])
  assert found[1, 0] == 8
  for row, given in ((0, 4), (1, 1)):
    alone = generate(network, {"prompt": jnp.array([prompt[row][:given]])}, 8)
    np.testing.assert_array_equal(found[row], alone[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_end_stops_a_row_and_zeros_follow(architecture):
  network = ending(config(architecture, tie_embeddings=False).make(nnx.Rngs(0)), after=6)
  found = generate(network, prompted(batch(), [[6], [6]]), 6)
  np.testing.assert_array_equal(found, [[6, 1, 0, 0, 0, 0]] * 2)


def test_an_end_token_within_a_prompt_does_not_stop_it():
  network = model(config("decoder"))
  found = generate(network, {"prompt": jnp.array([[4, 1, 9, 9]])}, 6)
  np.testing.assert_array_equal(found[0, :4], [4, 1, 9, 9])
  assert found[0, 4] != 0


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"temperature": -1.0}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_length": 2}, "prompt"),
  ],
)
def test_refused_arguments_are_named(changes, field):
  arguments = {"max_length": 4} | changes
  with pytest.raises(ConfigError) as caught:
    generate(model(config("decoder")), {"prompt": jnp.array([[5, 6, 7]])}, **arguments)
  assert caught.value.field == field


def test_sampling_without_a_key_is_refused():
  with pytest.raises(ValueError, match="expected a key"):
    generate(model(config("decoder")), {"prompt": jnp.array([[5]])}, 4, temperature=1.0)


def test_generation_with_a_router_that_is_not_causal_is_refused():
  network = model(config("decoder", EXPERT_CHOICE, allow_future_leakage=True))
  with pytest.raises(ValueError, match="not causal"):
    generate(network, {"prompt": jnp.array([[5]])}, 4)
