"""The arms of a study: one method each, in place of the feed-forward networks of the same dense model."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal, get_args

from moe.config import Text, build, in_section, override, parse_field, require
from moe.routing import RouterConfig
from moe.studies.repository import repository_config
from moe.studies.settings import Budget, Setting

Match = Literal["step", "total", "steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """A method. The experts of two arms have the same parameters together, unless one says otherwise.

  Attributes:
    router: its config section; None for the dense network.
    parts: how many times narrower an expert is than the dense network: as many as a token has of them, for the dense
      network's activated FLOPs. The narrower, the more there are.
    shared: experts of this width that every token has, beside the routed ones.
    experts: number of the routed ones, relative to that of the other arms.
    gate_scale: as in `moe.models.MoEConfig`.
    match: what equals the dense arm's: the measured FLOPs of a "step" (of its forward pass), to 2%, and so the number
      of steps; the "total", with fewer steps if they cost more; or the number of "steps" alone, as in papers that
      compare so.
    model: other changes of the config.
  """

  router: Mapping[str, Any] | None
  parts: int = 2
  shared: int = 0
  experts: float = 1.0
  gate_scale: float = 1.0
  match: Match = "step"
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    require(self.parts >= 1, "parts", self.parts, "expected at least 1")
    require(self.shared >= 0, "shared", self.shared, "expected at least 0")
    require(self.experts > 0, "experts", self.experts, "expected more than 0")
    require(self.match in get_args(Match), "match", self.match, f"expected one of {', '.join(get_args(Match))}")

  def tree(self, setting: Setting, budget: Budget) -> dict[str, Any]:
    """The config of a run of this arm, but for its seed, learning rate, data and number of steps."""
    config = override(repository_config(setting.config), budget.config.items())
    changes: dict[str, Any] = {f"model.{setting.stack}.moe": self._moe(config["model"], budget.num_experts)}
    if setting.stack == "decoder" and self.router is not None:
      router = build(RouterConfig, self.router)
      changes["model.allow_future_leakage"] = not all(router.is_causal(training=t) for t in (True, False))
    return override(config, itertools.chain(changes.items(), self.model.items()))

  def _moe(self, model: Mapping[str, Any], num_experts: int) -> dict[str, Any] | None:
    if self.router is None:
      return None
    d_ff = model["d_ff"]
    require(d_ff % self.parts == 0, "parts", self.parts, f"expected a divisor of d_ff = {d_ff}")
    as_dense = {"bias": model["bias"]} if "bias" in model else {}
    return {
      "num_experts": round(num_experts * self.parts / 2 * self.experts),
      "d_ff": d_ff // self.parts,
      "feed_forward": model.get("feed_forward", "geglu"),
      "shared_experts": self.shared,
      "gate_scale": self.gate_scale,
      "placement": {"name": "every_nth", "n": 1},
      "router": dict(self.router),
      **as_dense,
    }


def parse_arm(text: str) -> tuple[str, Mapping[str, Any]]:
  """The name and the values of `--arm NAME=VALUES`.

  Raises:
    ConfigError: it is not of this form.
  """
  name, value = parse_field(text)
  values = value.read() if isinstance(value, Text) else value
  wanted = """expected NAME=VALUES, such as mine='{"name": "expert_choice"}'"""
  require(name.isidentifier() and isinstance(values, Mapping), "--arm", text, wanted)
  return name, values


def given_arm(name: str, values: Mapping[str, Any]) -> Arm:
  """The arm of the flag `--arm NAME=VALUES`: a router's config section, or the fields of `Arm`.

  Raises:
    ConfigError: it is neither.
  """
  fields = [field.name for field in dataclasses.fields(Arm)]
  with in_section(f"--arm {name}"):
    if "name" in values:
      values = {"router": values}
    for field in values:
      require(field in fields, field, values[field], f"expected a router's section, or one of {', '.join(fields)}")
    require("router" in values, "router", None, "expected the config section of a router")
    router = values["router"]
    build(RouterConfig, router, "router")
    for field, kind in (("parts", int), ("shared", int), ("experts", float), ("gate_scale", float), ("model", Mapping)):
      value, wanted = values.get(field), {int: "a whole number", float: "a number"}.get(kind, "fields of the config")
      fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
      require(field not in values or fits, field, value, f"expected {wanted}")
    return Arm(**{**values, "router": {"name": router} if isinstance(router, str) else router})


def expert_choice(**options: Any) -> dict[str, Any]:
  """The section of expert choice with two experts per token on average."""
  return {"name": "expert_choice", "capacity_factor": 2.0, **options}


def top2(name: str, **options: Any) -> dict[str, Any]:
  """The section of a top-2 router with the slots of an expert choice with capacity factor 2: one per choice."""
  return {"name": name, "capacity_factor": 2.0, **options}


# The methods that several studies have, as published unless the name says otherwise.
ARMS: dict[str, Arm] = {
  "dense": Arm(router=None),
  # Token choice.
  "switch": Arm(router={"name": "switch"}, parts=1, match="total"),
  "gshard": Arm(router=top2("gshard")),
  "causal_top2": Arm(router=top2("glam")),
  "dropless_top2": Arm(router={"name": "dropless", "renormalize": True, "balance_scope": "batch"}),
  "loss_free": Arm(router={"name": "loss_free"}),
  "quantile_balanced": Arm(router={"name": "quantile_balanced"}),
  "base": Arm(router={"name": "base"}, parts=1, match="total"),
  "sinkhorn_base": Arm(router={"name": "sinkhorn_base"}, parts=1),
  "hash": Arm(router={"name": "hash", "function": "modulo"}, parts=1),
  # Expert choice, and what is causal of it.
  "expert_choice": Arm(router=expert_choice()),
  "expert_choice_renormalized": Arm(router=expert_choice(renormalize=True)),
  "position_grouped": Arm(router={"name": "position_grouped", "capacity_factor": 2.0}),
  "prefix_rank": Arm(router={"name": "prefix_rank", "capacity_factor": 2.0, "slack": None}),
  "threshold_shared": Arm(router={"name": "threshold", "capacity_factor": 1.0, "slack": None}, shared=1),
  # Soft.
  "soft_expert_choice": Arm(router={"name": "soft_expert_choice", "capacity_factor": 2.0}, match="total"),
  "dselect_k": Arm(router={"name": "dselect_k"}, match="total"),
}
