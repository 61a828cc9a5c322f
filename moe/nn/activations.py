"""The forms of a feed-forward network: what is applied between its first and last matrices."""

from collections.abc import Callable
from typing import Literal

import jax

Form = Literal["gelu", "relu", "geglu", "swiglu"]

# Gated forms (Shazeer 2020, "GLU variants improve transformer") take the gate's product first. GELU is the tanh
# approximation, as in T5 1.1.
ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
  "gelu": jax.nn.gelu,
  "relu": jax.nn.relu,
  "geglu": lambda gate, up: jax.nn.gelu(gate) * up,
  "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
}
GATED = ("geglu", "swiglu")
