"""Plans a run on TPUs: `python -m moe.plan --config configs/pretrain/glam_8b.py --topology v4:8x8x8`.

The TPU compiler (`pip install -e ".[tpu]"`, no TPU needed) compiles the real train step: does it fit, how long does a
step take, where does the time go. `--config` may be given several times; overrides apply to the config before them:
`--config A --config B --config.mesh.expert=16`. `--topology` is GENERATION:SHAPE, with v4, v5e, v5p or v6e.
"""

import dataclasses
import json
import os

from absl import flags

from moe import commands
from moe.config import ConfigError, require

commands.define_config(several=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Slice to plan for, such as v5p:8x8x8.", required=True)
_TOKENS = flags.DEFINE_float("tokens", None, "Tokens to train on; by default those of the config's steps.")
_OUT = flags.DEFINE_string("out", None, "JSON file to create, with the plans.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG file to create: where the time goes.")


def main() -> None:
  """Plans every config.

  Raises:
    ConfigError: a config, the slice or a file is not valid; or, at the end, some configs do not fit.
  """
  from moe.config import as_mapping
  from moe.config_file import read_config
  from moe.planning import plan_for
  from moe.planning.page import config_name, draw, plan_lines, plan_table
  from moe.planning.topology import parse_slice
  from moe.training.experiment import load_config
  from moe.training.init import inherit

  arguments = commands.given_configs()
  if not arguments:
    raise ConfigError("--config", None, "expected at least one config file")
  tokens = _TOKENS.value
  require(tokens is None or 1 <= tokens <= 1e18, "--tokens", tokens, "expected from 1 to 1e18")
  given = {"--out": _OUT.value, "--figure": _FIGURE.value}
  files = {flag: None if value is None else commands.new_path(flag, value) for flag, value in given.items()}
  where = parse_slice(_TOPOLOGY.value)
  configs = {config_name(one, arguments): load_config(inherit(read_config(one))) for one in arguments}
  plans, refused = {}, {}
  for name, config in configs.items():
    plan = plan_for(config, where)
    if isinstance(plan, str):
      refused[name] = plan
      continue
    plans[name] = plan
    print("\n".join(plan_lines(name, plan, tokens)), flush=True)
  if len(plans) > 1:
    print("\n".join(["", *plan_table(plans, tokens)]))
  if files["--out"]:
    found = {name: {"fits": True} | dataclasses.asdict(plan) for name, plan in plans.items()}
    found |= {name: {"fits": False, "why": why} for name, why in refused.items()}
    about = [{"name": name, "config": as_mapping(configs[name])} | found[name] for name in configs]
    files["--out"].write_text(json.dumps(about, indent=1) + "\n")
  if files["--figure"] and plans:
    draw(plans, files["--figure"])
  if refused:
    raise ConfigError("--topology", where.name, "; ".join(f"{name} {why}" for name, why in refused.items()))


if __name__ == "__main__":
  # Arrays live on the host; the TPU devices are for compilation only. JAX reads this when it is imported.
  os.environ["JAX_PLATFORMS"] = "cpu"
  commands.run(main)
