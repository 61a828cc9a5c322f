"""Vision Transformers: the published sizes, what patches and positions are, and experts among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.vision import base
from moe.config import ConfigError, build
from moe.models import ModelConfig, count_parameters
from moe.models.vision import patches_of, sincos_positions
from moe.routing import RouterConfig
from moe.training.experiment import load_config
from tests.models.tiny import model

TINY = {
  "name": "vision",
  "vocab_size": 5,
  "d_model": 8,
  "d_ff": 16,
  "num_heads": 2,
  "d_head": 4,
  "image_size": 8,
  "patch_size": 4,
  "channels": 1,
}


def tiny(router: str | dict | None = None, **changes) -> ModelConfig:
  """Four patches, two layers; with a router the second has four experts."""
  moe = router and {"num_experts": 4, "router": router}
  return build(ModelConfig, TINY | {"encoder": {"layers": 2, "moe": moe}} | changes)


def pictures(config, rows: int = 3, seed: int = 0) -> dict[str, jax.Array]:
  shape = (rows, config.image_size, config.image_size, config.channels)
  return {
    "images": jax.random.normal(jax.random.key(seed), shape),
    "inputs_segments": jnp.ones((rows, config.tokens), jnp.int32),
    "targets": jnp.zeros((rows, 1), jnp.int32),
  }


def logits(config, batch) -> np.ndarray:
  """`[B, V]`, with a head that tells features apart; it begins at 0."""
  vision = model(config)
  vision.head[...] = jax.random.normal(jax.random.key(1), vision.head.shape)
  return np.asarray(vision(batch, training=False).logits[:, 0])


@pytest.mark.parametrize(
  ("config", "published"),
  [
    # With a head of 1,000 classes.
    (base.vision("s16"), 22_050_664),
    (base.vision("b16"), 86_567_656),
    (base.vision("l16"), 304_326_632),
    (base.vision("h14"), 632_045_800),
    # Riquelme et al. 2021, table 8, with JFT's 18,291 classes.
    (base.vision("l16", 32, {"name": "batch_priority"}, {"name": "last", "n": 2}), 843e6 - 17_291 * 1025),
    (base.vision("l16", 32, {"name": "batch_priority"}, {"name": "every_nth"}), 3448e6 - 17_291 * 1025),
    (base.vision("h14", 32, {"name": "batch_priority"}, {"name": "every_nth"}), 7160e6 - 17_291 * 1281),
    # Puigcerver et al. 2023, table 2, with JFT-4B's 29,593 classes.
    (base.vision("s16", 128, {"name": "soft_moe"}, {"name": "last", "n": 6}), 933e6 - 28_593 * 385),
    (base.vision("b16", 128, {"name": "soft_moe"}, {"name": "last", "n": 6}), 3.7e9),
  ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(config, published):
  assert count_parameters(load_config(config).model, 1).total == pytest.approx(published, rel=0.01)


def test_patches_are_cut_row_by_row():
  image = jnp.arange(16).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(patches_of(image, 2)[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
  colour = jnp.arange(12).reshape(1, 2, 2, 3)
  np.testing.assert_array_equal(patches_of(colour, 2)[0, 0], np.arange(12))


def test_sincos_positions_are_waves_of_the_column_and_of_the_row():
  table = sincos_positions(3, 8)
  place = table[1 * 3 + 2]  # row 1, column 2
  slow = 1e-4
  expected = [np.sin([2, 2 * slow]), np.cos([2, 2 * slow]), np.sin([1, slow]), np.cos([1, slow])]
  np.testing.assert_allclose(place, np.concatenate(expected), rtol=1e-6)
  assert len(np.unique(table.round(5), axis=0)) == 9


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize(("pooling", "tokens"), [("class_token", 5), ("mean", 4)])
def test_a_picture_is_its_patches_and_where_they_are_matters(positions, pooling, tokens):
  config = tiny(positions=positions, pooling=pooling)
  batch = pictures(config)
  assert config.tokens == config.row_format.tokens == tokens
  assert model(config).encode(batch).x.shape == (3, tokens, 8)
  moved = batch | {"images": jnp.roll(batch["images"], 4, axis=1)}  # the upper patches below the lower ones
  assert np.abs(logits(config, batch) - logits(config, moved)).max() > 1e-4


@pytest.mark.parametrize("router", [None, "soft_moe", {"name": "expert_choice", "group_size": 4}])
def test_a_picture_does_not_depend_on_the_others_where_groups_are_of_one(router):
  config = tiny(router, pooling="mean")
  batch, others = pictures(config), pictures(config, seed=1)
  mixed = batch | {"images": others["images"].at[1].set(batch["images"][1])}
  np.testing.assert_allclose(logits(config, mixed)[1], logits(config, batch)[1], atol=1e-5)


def test_groups_of_several_pictures_share_an_experts_slots():
  config = tiny({"name": "expert_choice", "group_size": 8, "capacity_factor": 0.5}, pooling="mean")
  batch, others = pictures(config, rows=2), pictures(config, rows=2, seed=1)
  mixed = batch | {"images": others["images"].at[1].set(batch["images"][1])}
  assert np.abs(logits(config, mixed)[1] - logits(config, batch)[1]).max() > 1e-4


def test_a_row_without_a_picture_takes_no_slot():
  config = tiny({"name": "expert_choice", "capacity_factor": 0.5}, pooling="mean")
  batch = pictures(config)
  empty = batch | {"inputs_segments": batch["inputs_segments"].at[2].set(0)}
  routing = model(config)(empty, training=False).routing["encoder"]
  assert (np.asarray(routing.token) < 8).sum() > 0
  assert not np.isin(routing.token, np.arange(8, 12)).any()


def test_every_target_of_a_picture_has_its_logits():
  config = tiny()
  batch = pictures(config) | {"targets": jnp.zeros((3, 2), jnp.int32)}
  found = model(config)(batch, training=False).logits
  assert found.shape == (3, 2, 5)
  np.testing.assert_array_equal(found[:, 0], found[:, 1])


def in_training(config) -> jax.Array:
  vision = config.make(nnx.Rngs(0))
  return vision(pictures(config), training=True, key=jax.random.key(0)).logits


def test_every_router_that_reads_no_ids_routes_patches():
  for name, choice in RouterConfig.choices.items():
    if choice.reads_ids:
      with pytest.raises(ConfigError, match=r"encoder\.moe\.router\.name = 'hash': expected a router that reads no"):
        tiny(name)
      continue
    shape = jax.eval_shape(functools.partial(in_training, tiny(name, pooling="mean")))
    assert shape.shape == (3, 1, 5), name


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"patch_size": 3}, "patch_size = 3: expected a divisor of image_size = 8"),
    ({"patch_size": 0}, "patch_size = 0: expected from 1 to 16384"),
    ({"channels": 2}, "channels = 2: expected 1, grey, or 3"),
    ({"positions": "sincos", "d_model": 6}, "d_model = 6: expected a multiple of 4"),
    ({"tie_embeddings": True}, "tie_embeddings = True: expected False"),
  ],
)
def test_what_cannot_be_is_refused(changes, said):
  with pytest.raises(ConfigError) as error:
    tiny(**changes)
  assert said in str(error.value)
