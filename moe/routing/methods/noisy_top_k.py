"""Noisy top-k gating, the first sparsely gated layer. Shazeer et al. 2017, arXiv 1701.06538."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.routing.losses import importance_loss, load_loss
from moe.routing.router import Site
from moe.routing.scores import router_kernel, router_logits
from moe.routing.top_k import Decision, Logits, TopKConfig, TopKRouter, check_load_loss, with_noise

# Of the noise's standard deviation, by which the load loss divides: a softplus can underflow to 0.
_LEAST_NOISE = 0.01


def sparse_gates(choices: jax.Array, gates: jax.Array, num_experts: int) -> jax.Array:
  """G(x) of equation 3, float32 `[..., E]`: the gates of the chosen experts, 0 for the others.

  Args:
    choices: int32 `[..., k]`, different experts.
    gates: float32 `[..., k]`.
    num_experts: E.
  """
  return (jax.nn.one_hot(choices, num_experts) * gates[..., None]).sum(-2)


@dataclasses.dataclass(frozen=True)
class NoisyTopKConfig(TopKConfig, name="noisy_top_k"):
  """Noisy top-k gating: the top k of logits with learned noise.

  Dropless as published: only the losses keep the experts balanced. The paper's flat language models use 4 experts per
  token; the default here is 2, to compare with the other methods.

  Attributes:
    renormalize: True takes the softmax over the k chosen logits (equations 3 and 5), False over all experts.
    importance_loss: weight of the importance loss of the gates; 0.1 in the paper's language models.
    load_loss: weight of the load loss, in training only; also 0.1.
  """

  paper = "Shazeer et al. 2017, arXiv 1701.06538"

  renormalize: bool = True
  importance_loss: float = 0.1
  load_loss: float = 0.1

  @property
  def draws(self) -> bool:
    return True

  def make(self, site: Site, rngs: nnx.Rngs) -> "NoisyTopK":
    return NoisyTopK(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    check_load_loss(self.load_loss, self.top_k, site.num_experts)


class NoisyTopK(TopKRouter):
  """Logits with Gaussian noise whose standard deviation is learned per token and expert; no noise in evaluation.

  Shazeer et al. begin with both kernels at 0 (appendix A), so that at first noise alone decides and the experts are
  balanced. But steps relative to a parameter's size, Adafactor's, hardly move it from there. So both are drawn like
  every router's kernel, whose logits are small beside the noise, of standard deviation softplus(0) = 0.69.
  """

  config: NoisyTopKConfig

  def __init__(self, config: NoisyTopKConfig, site: Site, *, rngs: nnx.Rngs):
    super().__init__(config, site, rngs=rngs)
    self.noise_kernel = router_kernel(site, rngs)

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    logits = super().logits(tokens, key)
    if key is None:
      return logits
    std = jax.nn.softplus(router_logits(tokens, self.noise_kernel[...]))
    return with_noise(logits.clean, jnp.maximum(std, _LEAST_NOISE), key)

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    losses, logits = super().losses(decision, training=training), decision.logits
    gates = sparse_gates(decision.choices, decision.gates, self.num_experts)
    losses["importance"] = importance_loss(gates, decision.mask)
    if self.config.load_loss and training:
      losses["load"] = load_loss(logits.clean, logits.noisy, self.config.top_k, logits.noise_std, decision.mask)
    return losses
