"""Plans of the paper's models and of variations of them, made by the TPU compiler.

    python -m scripts.benchmarks.plans --study 8b --results results/plan_8b.json

Needs the extra `tpu`, but no TPU. Studies:

  8b     expert choice against GLaM's top-2 with 64 experts on 512 chips of TPU v4, at several capacities
  sizes  the cost of a 0.1B step on 64 chips of v5e by experts, routing groups, capacity and way of dispatch

Every plan is written as soon as it is made; the same command resumes after an interruption.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

# Arrays live on the host; the TPU devices are for compilation only. JAX reads this when it is imported.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from flax import nnx

from configs.pretrain.base import SLICES
from moe.checks.layer_programs import one_hot_masks
from moe.commands import Parser, run_script
from moe.config import override
from moe.config_file import read_config_file
from moe.planning import plan_for
from moe.planning.page import plan_table
from moe.planning.topology import parse_slice
from moe.routing import RouterInput, RouterOutput, Site
from moe.routing.methods.expert_choice import ExpertChoice, ExpertChoiceConfig
from moe.training.experiment import load_config


@dataclasses.dataclass(frozen=True)
class ExpertChoiceByMasksConfig(ExpertChoiceConfig, name="expert_choice_by_masks"):
  """Expert choice that moves tokens by products with one-hot masks `[G, n, E, C]`, as GShard and GLaM do."""

  def make(self, site: Site, rngs: nnx.Rngs) -> "ExpertChoiceByMasks":
    return ExpertChoiceByMasks(self, site, rngs=rngs)


class ExpertChoiceByMasks(ExpertChoice):
  """The same choice, written as masks."""

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    output = super().__call__(inputs, training=training)
    with jax.named_scope("dispatch"):
      return dataclasses.replace(output, routing=one_hot_masks(output.routing, inputs.mask.shape[1]))


def router_changes(name: str, **options) -> dict[str, Any]:
  return {"model.decoder.moe.router": {"name": name, **options}}


def expert_choice_changes(group: int = 4096, capacity: float = 2.0, masks: bool = False, **moe) -> dict[str, Any]:
  name = "expert_choice_by_masks" if masks else "expert_choice"
  changes = router_changes(name, group_size=group, capacity_factor=capacity)
  return changes | {f"model.decoder.moe.{field}": value for field, value in moe.items()}


# By study: the slice, and for each plan a pretraining config and the fields to replace in it.
STUDIES: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]]]] = {
  "8b": (
    SLICES["8b"],
    {
      "expert choice, capacity 2": ("expert_choice_8b", {}),
      "GLaM top-2, capacity 2": ("glam_8b", router_changes("glam", capacity_factor=2.0)),
      "GLaM top-2, capacity 2.5": ("glam_8b", router_changes("glam", capacity_factor=2.5)),
      "GLaM top-2, capacity 4": ("glam_8b", router_changes("glam", capacity_factor=4.0)),
      "dense": ("dense_8b", {}),
    },
  ),
  "sizes": (
    SLICES["0.1b"],
    {
      "64 experts, groups of 4,096, capacity 2": ("expert_choice_0_1b", expert_choice_changes()),
      "16 experts": ("expert_choice_0_1b", expert_choice_changes(num_experts=16)),
      "128 experts": ("expert_choice_0_1b", expert_choice_changes(num_experts=128)),
      "512 experts": ("expert_choice_0_1b", expert_choice_changes(num_experts=512)),
      "groups of 1,024": ("expert_choice_0_1b", expert_choice_changes(group=1024)),
      "groups of 16,384, all of a chip": ("expert_choice_0_1b", expert_choice_changes(group=16_384)),
      "groups of 65,536, on 4 chips": ("expert_choice_0_1b", expert_choice_changes(group=65_536)),
      "capacity 1": ("expert_choice_0_1b", expert_choice_changes(capacity=1.0)),
      "capacity 4": ("expert_choice_0_1b", expert_choice_changes(capacity=4.0)),
      "one-hot masks, groups of 1,024": ("expert_choice_0_1b", expert_choice_changes(group=1024, masks=True)),
      "one-hot masks, groups of 4,096": ("expert_choice_0_1b", expert_choice_changes(masks=True)),
    },
  ),
}


def main() -> None:
  parser = Parser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--study", choices=STUDIES, required=True)
  parser.add_argument("--results", type=pathlib.Path, required=True, help="JSON; plans already in it are kept")
  arguments = parser.parse_args()
  topology, cases = STUDIES[arguments.study]
  where = parse_slice(topology)
  found = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
  for name, (config, changes) in cases.items():
    if name in found:
      continue
    plan = plan_for(load_config(changed(config, changes)), where)
    about = {"config": f"configs/pretrain/{config}.py", "changes": changes}
    found[name] = about | ({"why": plan} if isinstance(plan, str) else {"plan": dataclasses.asdict(plan)})
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    print(plan if isinstance(plan, str) else "\n".join(plan_table({name: plan}, None)[2:]), flush=True)


def changed(config: str, changes: dict[str, Any]) -> dict[str, Any]:
  """The tree of a pretraining config with some fields replaced, by their dotted names."""
  return override(read_config_file(f"configs/pretrain/{config}.py"), changes.items())


if __name__ == "__main__":
  run_script(main)
