"""The forms of a feed-forward network: what is applied between its first and last matrices."""

from collections.abc import Callable
from typing import Literal

import jax

Form = Literal["gelu", "gelu_exact", "relu", "geglu", "geglu_exact", "swiglu"]


def exact_gelu(x: jax.Array) -> jax.Array:
  """`[...]`, x times the cumulative distribution function of the standard normal at x."""
  return jax.nn.gelu(x, approximate=False)


# Gated forms (Shazeer 2020, "GLU variants improve transformer") take the gate's product first. GELU is the tanh
# approximation, as in T5 1.1; the exact one, x Phi(x) by the error function, is that of BERT, V-MoE's ViT and PyTorch.
ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
  "gelu": jax.nn.gelu,
  "gelu_exact": exact_gelu,
  "relu": jax.nn.relu,
  "geglu": lambda gate, up: jax.nn.gelu(gate) * up,
  "geglu_exact": lambda gate, up: exact_gelu(gate) * up,
  "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
}
GATED = ("geglu", "geglu_exact", "swiglu")
