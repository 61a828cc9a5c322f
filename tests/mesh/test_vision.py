"""Pictures on a mesh: a patch has any number of values, which need not divide among the devices."""

import jax
import numpy as np
import pytest
from flax import nnx

from moe.config import build
from moe.models import ModelConfig
from moe.parallel.mesh import MeshConfig, make_mesh, put_batch, tracing_for
from moe.training.state import abstract_model, merge, shardings_of

# Patches of 25 values, which two devices do not divide, and of 64, which four do; the model's width divides either way.
SIZES = {"vocab_size": 5, "d_model": 64, "d_ff": 64, "num_heads": 2, "d_head": 32, "channels": 1}


@pytest.mark.parametrize(("patch", "rows"), [(5, None), (8, ("expert", "data"))])
def test_fsdp_divides_the_values_of_a_patch_or_nothing_and_the_features_are_those_of_one_device(patch, rows):
  sizes = {"patch_size": patch, "image_size": 2 * patch}
  config = build(ModelConfig, {"name": "vision", **SIZES, **sizes, "encoder": {"layers": 1}})
  draw = np.random.default_rng(0)
  batch = {
    "images": draw.normal(size=(4, 2 * patch, 2 * patch, 1)).astype(np.float32),
    "inputs_segments": np.ones((4, config.tokens), np.int32),
  }
  params = nnx.to_pure_dict(nnx.state(config.make(nnx.Rngs(0)), nnx.Param))

  def features(shape: MeshConfig) -> tuple[np.ndarray, jax.sharding.PartitionSpec]:
    mesh = make_mesh(shape, jax.devices()[: shape.data * shape.expert])
    about = abstract_model(config.make, mesh, fsdp=True)
    spread = jax.device_put(params, shardings_of(about.params))
    with tracing_for(mesh):
      encode = jax.jit(lambda params, batch: merge(about.graph, params, {}).encode(batch).x)
      return np.asarray(encode(spread, put_batch(mesh, batch))), about.params["patch"].sharding.spec

  found, spec = features(MeshConfig(data=2, expert=2))
  assert spec == jax.sharding.PartitionSpec(rows, None)
  np.testing.assert_allclose(found, features(MeshConfig(data=1))[0], rtol=2e-5, atol=2e-6)
