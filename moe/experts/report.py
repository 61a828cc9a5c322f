"""The report that a layer returns besides its output."""

import dataclasses

import jax

from moe.routing import Groups, Policy, RouterOutput, Routing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerReport:
  """What a layer returns besides its output.

  Attributes:
    auxiliary_loss: float32 scalar, weighted.
    metrics: float32 arrays by name: the router's metrics, and its unweighted losses as `loss/NAME`.
    routing: the router's decision; free in a compiled program that does not use it.
    policy: `[B, T]`, in training, from a router that learns by REINFORCE; else None.
    seen: in training, what `MoE.learn` moves the router's state by; {} if it has none to move.
  """

  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  routing: Routing
  policy: Policy | None
  seen: dict[str, jax.Array]


def report_of(output: RouterOutput, groups: Groups, mask: jax.Array) -> LayerReport:
  """The report of what a router gave for a batch with the mask `[B, T]`, divided into these groups."""
  losses = {f"loss/{name}": value for name, value in output.losses.items()}
  policy = output.policy and output.policy.joined(groups, *mask.shape)
  seen = jax.lax.stop_gradient(output.seen and output.seen | {"tokens": mask.sum()})
  return LayerReport(output.auxiliary_loss, output.metrics | losses, output.routing, policy, seen)
