"""Runs made of runs: upcycled, merged, pruned, grown, averaged.

Each makes an ordinary workdir with one checkpoint, at the step of the run that it is made of. `moe.train` trains it
further from there, with the schedule of the learning rate and, unless the section `data` changes, the input position
where they were; or a new run begins with it (`config.init.workdir`). All checks come before anything is read, and
nothing is written before all is computed.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from moe.config import ConfigError, require
from moe.convert.growing import grow_experts
from moe.convert.layers import Tree
from moe.convert.merging import Chosen, mean_of, merge_experts
from moe.convert.new_config import (
  Fields,
  changed_config,
  check_model,
  check_statistics,
  dense_config,
  experts_of,
  grown_config,
  pruned_config,
  upcycled_config,
)
from moe.convert.new_run import new_workdir, write_run
from moe.convert.old_run import OldRun, read_run, setup_of
from moe.convert.pruning import most_used, prune_experts
from moe.convert.upcycling import add_noise, upcycle_params, upcycle_statistics
from moe.data import DataConfig
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import open_checkpoints, restore, vocabulary_of
from moe.training.checkpoint import read_about
from moe.training.experiment import ExperimentConfig
from moe.training.state import stored_router_state
from moe.training.workdir import Workdir

Folder = str | pathlib.Path


def upcycle_run(
  source: Folder, step: str, target: Folder, fields: Fields, *, noise: float = 0.0, fresh_optimizer: bool = False
) -> None:
  """Writes a dense run's checkpoint as one of a run with experts.

  Args:
    source: workdir of the dense run.
    step: of the checkpoint, as in `moe.evaluation.restore`.
    target: new workdir.
    fields: what the config changes: the sections `moe` of its stacks.
    noise: scale of `add_noise`. Its seed, and that of the routers, is the new config's.
    fresh_optimizer: whether the optimizer's statistics are reset.

  Raises:
    ConfigError: a wrong field, or a config that is not the dense run's with experts.
    WorkdirError, CheckpointError: there is no such checkpoint, or the target cannot be written to.
  """
  workdir, old = new_workdir(target), Workdir(source, "--from").load_config()
  require(0 <= noise < math.inf, "--noise", noise, "expected at least 0, and finite")
  for name in experts_of(old.model):
    raise ConfigError("--from", str(source), f"expected a dense run, and this one has experts in its {name}")
  new = upcycled_config(old, fields)
  if not fresh_optimizer:
    check_statistics(old, new)
  run = read_run(source, step)
  state, vocabulary = run.state, vocabulary_of(run.trained)
  fresh = setup_of(new).first_state(stored_router_state(new.model, vocabulary.fingerprint))
  params, opt_state = jax.jit(upcycle_params, static_argnums=2)(state.params, fresh.params, new.model), None
  if noise:
    params = add_noise(params, new.model, noise, new.seed)
  if not fresh_optimizer:
    opt_state = upcycle_statistics(state.opt_state, fresh.opt_state, state.params, new.model)
  _write(workdir, new, run, params, fresh.router_state, opt_state)


def merge_run(source: Folder, step: str, target: Folder, fields: Fields) -> None:
  """Writes a run's checkpoint as one of a dense run, with the means of the experts' matrices; arguments as above."""
  workdir, old = new_workdir(target), _sparse(source)
  new = dense_config(old, fields)
  run = read_run(source, step)
  _write(workdir, new, run, merge_experts(run.state.params, old.model), {})


def prune_run(source: Folder, step: str, target: Folder, fields: Fields, *, keep: int, batches: int = 0) -> None:
  """Writes a run's checkpoint with those experts of each MoE layer that are used most; a single one makes it dense.

  Use is counted over the validation split of the new config's data, routed as in evaluation.

  Args:
    source: workdir of the run.
    step: of the checkpoint.
    target: new workdir.
    fields: what else the config changes; of a folder of others' weights, which has no data, `data.source`.
    keep: experts per layer.
    batches: of the split; 0 for all.

  Raises:
    ConfigError: as above, and for a router from which no expert can be removed.
    DataError: the data of the run are missing.
  """
  workdir, old = new_workdir(target), _sparse(source)
  for name, moe in experts_of(old.model).items():
    most = f"expected from 1 to {moe.num_experts}, the experts of the {name}"
    require(1 <= keep <= moe.num_experts, "--keep", keep, most)
  new = dense_config(old, fields) if keep == 1 else pruned_config(old, fields, keep)
  run = read_run(source, step)
  chosen, state = _most_used(run, new.data, keep, batches), run.state
  if keep == 1:
    _write(workdir, new, run, merge_experts(state.params, old.model, chosen), {})
  else:
    _write(workdir, new, run, *(prune_experts(each, old.model, chosen) for each in (state.params, state.router_state)))


def grow_run(source: Folder, step: str, target: Folder, fields: Fields) -> None:
  """Writes a run's checkpoint with more experts, whose outputs are what they were.

  Args:
    source: workdir of the run.
    step: of the checkpoint.
    target: new workdir.
    fields: what the config changes: `num_experts` of the stacks that grow.

  Raises:
    ConfigError: as above; fewer experts, or a router that does not go with new ones.
  """
  workdir, old = new_workdir(target), _sparse(source)
  new = grown_config(old, fields)
  run = read_run(source, step)
  state = run.state
  _write(workdir, new, run, *(grow_experts(each, old.model, new.model) for each in (state.params, state.router_state)))


def average_runs(sources: Sequence[Folder], steps: Sequence[str], target: Folder, fields: Fields) -> None:
  """Writes the mean of the parameters of several checkpoints; the routers' state, and all else, is the last one's.

  Args:
    sources: workdirs of runs with equal models.
    steps: of the checkpoints, as in `moe.evaluation.restore`; each is read from every source.
    target: new workdir.
    fields: what the config changes.
  """
  workdir, configs = new_workdir(target), [Workdir(source, "--from").load_config() for source in sources]
  for source, config in zip(sources, configs):
    _check_alike(source, config, sources[0], configs[0])
  new = changed_config(configs[-1], fields)
  check_model(new.model, configs[-1].model)
  found = [one for source in sources for one in _checkpoints(source, steps)]
  once = len(found) > 1 and len(set(found)) == len(found)
  require(once, "--steps", ",".join(steps), "expected two checkpoints or more, each once")
  run = read_run(*found[-1])
  mean = mean_of(run.state.params if one == found[-1] else restore(*one).params for one in found)
  _write(workdir, new, run, mean, run.state.router_state)


def _write(
  workdir: Workdir, new: ExperimentConfig, run: OldRun, params: Tree, router_state: Tree, opt_state: Any = None
) -> None:
  """Writes the new run, and says how to train it further."""
  old, step = run.trained.config, run.trained.step
  position = run.position if new.training_data == old.training_data else None
  files = run.about["router_files"] if new.model == old.model else None  # the files may be gone
  about = {"data": run.about["data"], "router_files": files, "position": position}
  write_run(workdir, new, params, router_state, vocabulary_of(run.trained), step=step, opt_state=opt_state, **about)
  longer = "" if new.train.steps > step else f" --config.train.steps=N, more than {step}"
  print(f"written to {workdir.root} at step {step}; to train it further:")
  print(f"python -m moe.train --config {workdir.config} --workdir {workdir.root}{longer}")


def _sparse(source: Folder) -> ExperimentConfig:
  """The config of a run with experts; raises `ConfigError` if it is dense."""
  config = Workdir(source, "--from").load_config()
  require(bool(experts_of(config.model)), "--from", str(source), "expected a run with experts, and this one is dense")
  return config


def _most_used(run: OldRun, data: DataConfig, keep: int, batches: int) -> Chosen:
  """By stack, each MoE layer's `keep` experts that get the most assignments; they are printed."""
  config = run.trained.config
  record, chosen = evaluate(run.trained, data, "validation", batches), {}
  for name in experts_of(config.model):
    layers = range(sum(config.model.stacks[name].has_experts))
    load = np.array([record[f"{name}/layer_{layer}/load"] for layer in layers])  # [L, E]
    chosen[name] = most_used(load, keep)
    for layer, experts in enumerate(chosen[name]):
      listed, share = ", ".join(map(str, experts)), load[layer, experts].sum()
      print(f"{name}/layer_{layer}: experts {listed} stay, which had {share:.1%} of the assignments")
  return chosen


def _check_alike(source: Folder, config: ExperimentConfig, first: Folder, expected: ExperimentConfig) -> None:
  """Raises `ConfigError` unless a run has the model and the vocabulary of the first."""
  try:
    check_model(config.model, expected.model)
  except ConfigError as error:
    raise ConfigError("--from", str(source), f"expected a model like that of {first}; {error}") from None
  ours, theirs = (read_about(Workdir(each).checkpoints).get("vocabulary", {}) for each in (source, first))
  same = all(ours.get(field) == theirs.get(field) for field in ("size", "fingerprint"))  # wherever the file lies
  require(same, "--from", str(source), f"expected the vocabulary of {first}")


def _checkpoints(source: Folder, steps: Sequence[str]) -> list[tuple[Folder, str]]:
  """The steps of a run, each as a number."""
  with open_checkpoints(Workdir(source)) as checkpoints:
    return [(source, str(checkpoints.find(step, "--steps"))) for step in steps]
