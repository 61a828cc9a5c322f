"""An architecture is one class beside its module, found by its name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.config import ConfigError, as_mapping, build
from moe.models import Batch, ModelConfig, ModelOutput, StackConfig, count_parameters
from moe.models.block import Context
from moe.models.embedding import TokenEmbedding
from moe.models.stack import Stack
from moe.nn.attention import segment_mask
from moe.parallel.mesh import make_mesh
from moe.training.state import abstract_model, abstract_state
from moe.training.step import RunInputs, make_train_step
from tests.models.tiny import batch

MAPPING = {
  "name": "encoder_only",
  "vocab_size": 24,
  "d_model": 16,
  "d_ff": 24,
  "num_heads": 2,
  "d_head": 8,
  "encoder": {
    "layers": 3,
    "moe": {"num_experts": 4, "router": "expert_choice", "placement": {"name": "last", "n": 2}},
  },
}


@pytest.fixture
def architecture():
  """What such a file holds; afterwards the name is unknown again."""

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class EncoderOnlyConfig(ModelConfig, name="encoder_only"):
    row_format = "targets"

    encoder: StackConfig

    def make(self, rngs: nnx.Rngs) -> "EncoderOnly":
      return EncoderOnly(self, rngs=rngs)

    def stack_lengths(self, inputs_length: int, targets_length: int) -> dict[str, int]:
      return {"encoder": inputs_length + targets_length}

  class EncoderOnly(nnx.Module):
    """Reads `targets` in both directions and gives logits for each."""

    def __init__(self, config: EncoderOnlyConfig, *, rngs: nnx.Rngs):
      self.embedding = TokenEmbedding(config, rngs=rngs)
      self.encoder = Stack(config, config.encoder, causal=False, rngs=rngs)

    def __call__(self, batch: Batch, *, training: bool, key: jax.Array | None = None) -> ModelOutput:
      ids, segments = batch["targets"], batch["targets_segments"]
      context = Context(segment_mask(segments, segments), ids, batch["targets_positions"], segments)
      result = self.encoder(self.embedding(ids), context, training=training, key=key)
      parts = (
        {"encoder": part}
        for part in (result.auxiliary_loss, result.metrics, result.routing, result.policy, result.seen)
      )
      return ModelOutput(self.embedding.logits(result.x), *parts)

  yield EncoderOnlyConfig
  del ModelConfig.choices["encoder_only"]


def test_it_is_found_by_its_name_made_and_applied(architecture):
  config = build(ModelConfig, MAPPING, "config.model")
  assert isinstance(config, architecture)
  assert build(ModelConfig, as_mapping(config), "config.model") == config
  network = config.make(nnx.Rngs(0))
  output = nnx.jit(lambda network: network(batch(rows=2, targets=8), training=False))(network)
  assert output.logits.shape == (2, 8, 24) and jnp.isfinite(output.logits).all()
  assert output.metrics["encoder"]["load"].shape == (2, 4)


def test_what_all_architectures_have_works_with_its_stacks(architecture):
  config = build(ModelConfig, MAPPING, "config.model")
  assert list(config.stacks) == ["encoder"]
  assert not config.leaks_future  # there is no decoder whose loss could be false
  config.check_batches(2, inputs_length=3, targets_length=5)
  with pytest.raises(
    ConfigError, match=r"^encoder\.moe\.router\.group_size = 5: expected a divisor of 2 x 8 = 16 tokens"
  ):
    router = {"name": "expert_choice", "group_size": 5}
    encoder = MAPPING["encoder"] | {"moe": MAPPING["encoder"]["moe"] | {"router": router}}
    build(ModelConfig, MAPPING | {"encoder": encoder}).check_batches(2, inputs_length=3, targets_length=5)
  counts = count_parameters(config, experts_per_token=2)
  assert counts.experts == 2 * 4 * 2 * 16 * 24
  np.testing.assert_allclose(counts.total - counts.activated, counts.experts / 2)


def test_it_can_be_trained_on_batches_without_inputs(architecture):
  model, mesh = build(ModelConfig, MAPPING, "config.model"), make_mesh()
  abstract, optimizer = abstract_model(model.make, mesh), optax.identity()
  state = abstract_state(abstract, optimizer, mesh)
  step = make_train_step(abstract.graph, state, optimizer, accumulation=2, logits_z_loss=0.0, byte_lengths=np.ones(24))
  example = {name: array for name, array in batch(rows=2, targets=8).items() if not name.startswith("inputs")}
  _, metrics = jax.eval_shape(step, state, example, RunInputs(np.zeros(2, np.uint32), np.float32(0.1)))
  assert metrics["layers"]["encoder"]["load"].shape == (2, 4)


def test_its_name_is_unknown_elsewhere():
  with pytest.raises(
    ConfigError, match=r"config\.model\.name = 'encoder_only': expected one of decoder, encoder_decoder"
  ):
    build(ModelConfig, MAPPING, "config.model")


def test_its_stacks_are_an_encoder_or_a_decoder_so_that_a_leak_is_never_missed():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class TrunkConfig(ModelConfig):
    row_format = "targets"

    trunk: StackConfig

  sizes = {name: MAPPING[name] for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_head")}
  with pytest.raises(TypeError, match=r"^TrunkConfig\.trunk: expected stacks named encoder or decoder$"):
    TrunkConfig(**sizes, trunk=StackConfig(layers=1))
