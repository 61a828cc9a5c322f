"""Decoding: the text that a model writes after an input, the likeliest token each time, until EOS."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from moe.evaluation.decoding import greedy
from moe.models import Batch, ModelConfig
from moe.models.decoder_stack import start_decoding
from moe.parallel.mesh import replicated, tracing_for
from moe.parallel.programs import program
from moe.training.state import merge


def make_greedy_decoder(
  config: ModelConfig, mesh: Mesh, length: int, row_length: int
) -> Callable[[dict, dict, Batch], jax.Array]:
  """The compiled `(params, router_state, inputs) -> int32 [B, T]`, on every device.

  What is written has zeros after its EOS. A decoder first repeats the input, M tokens: T is M + length, else `length`.
  `inputs` are as in `make_ranker`.

  Args:
    config: of the model, whose decoder is causal.
    mesh: of the devices.
    length: tokens to write, EOS included.
    row_length: of the decoder's rows in training, for which routers count their capacity.
  """

  def decode(params, router_state, inputs):
    graph = nnx.split(nnx.eval_shape(lambda: config.make(nnx.Rngs(0))))[0]  # here, so that it is made once
    model: Any = merge(graph, params, router_state)
    given = inputs["inputs_segments"] > 0
    nothing = jnp.zeros((len(given), length), jnp.int32)
    with tracing_for(mesh):
      if config.row_format == "targets":
        prompt = jnp.concatenate([inputs["inputs"], nothing], axis=1)
        state = model.start({"prompt": prompt}, prompt.shape[1], row_length)
      else:
        prompt, memory = nothing, model.encode(inputs).x
        mask = given[:, None, None, :]
        state = start_decoding(config, model.decoder, len(given), length, row_length, memory, mask)
      return greedy(model, prompt, state, ~given.any(axis=1))

  made_of = config, mesh, length, row_length
  return program(("decode", *made_of), lambda: jax.jit(decode, out_shardings=replicated(mesh)))
