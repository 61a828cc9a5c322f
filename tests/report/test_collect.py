"""What is read from a run: names, real tokens only, texts of vocabulary items."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError
from moe.data import load_vocabulary
from moe.report.collect import run_names, stack_layers
from moe.report.token_texts import printable, token_texts, visible
from moe.routing import SlotRouting, SoftRouting
from tests.report.runs import make_run
from tests.training.tiny import tiny_stack


def test_names_are_the_shortest_that_differ():
  assert run_names(["/x/one", "/x/two"]) == ["one", "two"]
  assert run_names(["/x/run", "/y/run", "/y/other"]) == ["x/run", "y/run", "y/other"]


def test_a_run_that_is_given_twice_is_refused():
  with pytest.raises(ConfigError, match=r"--workdir = 'x/../run': expected each run once"):
    run_names(["run", "x/../run"])


@pytest.fixture
def batch():
  """Two rows of three tokens; the last one is padding."""
  segments = np.array([[1, 1, 1], [1, 1, 0]])
  ids, positions = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[0, 1, 2], [0, 1, 0]])
  names = ("inputs", "targets")
  arrays = {name: ids for name in names} | {f"{name}_positions": positions for name in names}
  return arrays | {f"{name}_segments": segments for name in names}


EXPERT_CHOICE = {"name": "expert_choice", "capacity_factor": 1.0}
STACK = tiny_stack(EXPERT_CHOICE, num_experts=2)
MODEL = make_run(encoder=STACK, decoder=STACK, allow_future_leakage=True).trained.config.model


def test_a_layer_knows_its_real_tokens_in_the_order_of_the_text(batch):
  token = jnp.array([[[[0, 4, 5], [1, 6, 6]]]])  # one layer, one group; 6 is an empty slot, 5 a slot of padding
  weight = jnp.array([[[[0.5, 0.25, 0.75], [1.0, 0.0, 0.0]]]])
  (layer,) = stack_layers(MODEL, "encoder", SlotRouting(token, weight), batch)
  assert layer.ids.tolist() == [5, 6, 7, 8, 9] and layer.positions.tolist() == [0, 1, 2, 0, 1]
  np.testing.assert_array_equal(layer.weights, [[0.5, 0], [0, 1], [0, 0], [0, 0], [0.25, 0]])
  np.testing.assert_array_equal(layer.chosen, layer.weights > 0)
  np.testing.assert_allclose(layer.load, [2 / 3, 1 / 3])


def test_a_decoder_reads_its_targets_one_position_later(batch):
  empty = SlotRouting(jnp.full((1, 1, 2, 3), 6), jnp.zeros((1, 1, 2, 3)))
  (layer,) = stack_layers(MODEL, "decoder", empty, batch)
  assert layer.ids.tolist() == [0, 5, 6, 0, 8]


def test_in_soft_routing_experts_above_an_even_share_count_and_the_load_is_weight(batch):
  share = jnp.array([0.9, 0.2, 0.5, 0.6, 0.4, 0.0])
  combine = jnp.stack([share, 1 - share], -1).reshape(1, 1, 6, 2, 1)
  (layer,) = stack_layers(MODEL, "encoder", SoftRouting(combine, combine), batch)
  np.testing.assert_array_equal(layer.chosen[:, 0], [True, False, False, True, False])
  np.testing.assert_allclose(layer.load[0], (0.9 + 0.2 + 0.5 + 0.6 + 0.4) / 5, rtol=1e-6)
  assert layer.soft


def test_items_keep_the_spaces_they_stand_for():
  vocabulary = load_vocabulary("configs/vocabularies/python_2k.model", 2)
  ids = vocabulary.encode("def main(x):\n    return 1")
  texts = token_texts(vocabulary, [*ids, 0, 1, 2048])
  assert "".join(texts[i] for i in ids.tolist()) == "def main(x):\n    return 1"
  assert (texts[0], texts[1], texts[2048]) == ("⟨start⟩", "⟨end⟩", "⟨2048⟩")


def test_a_part_of_a_character_is_marked_as_one():
  vocabulary = load_vocabulary("bytes", 0)
  assert set(token_texts(vocabulary, vocabulary.encode("é")).values()) == {"\ufffd"}


def test_characters_that_would_control_the_page_are_shown_instead():
  assert printable("a\x00b\x0c\u202ec\n\td") == "a␀b␌⟨202e⟩c\n\td"
  assert visible(" x\n\t") == "␣x↵⇥"
