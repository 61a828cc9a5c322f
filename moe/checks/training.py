"""Training: steps on the device against the same ones on the CPU, and a tiny run that stops and resumes."""

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from moe.checks.agreement import difference, on_cpu, quick_options
from moe.checks.journal import Finding
from moe.checks.step_programs import RunningStep, small_config
from moe.parallel.mesh import MeshConfig
from moe.training.experiment import ExperimentConfig, TrainConfig
from moe.training.metrics_file import read_metrics
from moe.training.trainer import train

_LENGTH, _STEPS = 64, 3
_ROUTERS: dict[str, Mapping[str, Any]] = {
  "expert choice": {"name": "expert_choice", "capacity_factor": 2, "group_size": _LENGTH},
  "top-2 dropless": {"name": "token_choice", "top_k": 2, "capacity_factor": None},
}
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
_RUN, _SAVED, _KILLED = 8, 4, 6  # steps of the whole run, of its checkpoint, and after which it is killed


class _Killed(Exception):
  pass


def step_checks(*, quick: bool) -> dict[str, Callable[[], Finding]]:
  """The losses of the first steps of small language models, by model; if quick, of one of them."""
  models = [(name, dtype) for name in _ROUTERS for dtype in _TOLERANCE]
  return {
    f"{_STEPS} steps, {name}, {dtype}": functools.partial(_steps, name, dtype)
    for name, dtype in (models[-1:] if quick else models)
  }


def _steps(name: str, dtype: str) -> Finding:
  with on_cpu():
    expected = _losses(_running(_config(name), "cpu"))
  with jax.default_matmul_precision("highest"):
    found = _losses(_running(_config(name, dtype), jax.default_backend()))
  return difference(found, expected, _TOLERANCE[dtype])


def _running(config: ExperimentConfig, platform: str) -> RunningStep:
  return RunningStep(config, jax.devices(platform)[:1], compiler_options=quick_options(platform))


def _losses(step: RunningStep) -> list[dict[str, np.ndarray]]:
  losses = []
  for _ in range(_STEPS):
    step()
    losses.append(jax.device_get({key: step.metrics[key] for key in ("loss", "auxiliary_loss", "gradient_norm")}))
  return losses


def _config(router: str, dtype: str = "float32", batch: int = 8) -> ExperimentConfig:
  return small_config(
    d_model=64,
    d_ff=128,
    width=256,
    layers=2,
    batch=batch,
    length=_LENGTH,
    dtype=dtype,
    experts=8,
    router=_ROUTERS[router],
  )


def run_and_resume() -> Finding:
  """A run is killed between two checkpoints and resumed; it must have the losses of one that was never stopped.

  On a CPU bit for bit. Elsewhere sums of scattered rows may come in any order.
  """
  devices = len(jax.devices())
  config = dataclasses.replace(
    _config("expert choice", batch=8 if 8 % devices == 0 else devices),
    mesh=MeshConfig(data=1, expert=-1) if 8 % devices == 0 else MeshConfig(),
    train=TrainConfig(steps=_RUN, log_every=1, eval_every=_RUN, eval_batches=1, checkpoint_every=_SAVED),
  )

  def kill(run: Any, info: Any) -> None:
    if info.step == _KILLED:
      raise _Killed

  with tempfile.TemporaryDirectory() as folder, _silence():
    whole, killed = pathlib.Path(folder, "whole"), pathlib.Path(folder, "killed")
    train(config, whole)
    with contextlib.suppress(_Killed):
      train(config, killed, hooks=[kill])
    train(config, killed)
    losses, resumed = (_train_losses(run / "metrics.jsonl") for run in (whole, killed))
  if not losses[-1] < losses[0]:
    raise RuntimeError(f"the loss was {losses[0]:.3f} and is {losses[-1]:.3f}: expected it to fall")
  exact = jax.default_backend() == "cpu"
  found = difference({"loss": resumed.astype(np.float32)}, {"loss": losses}, 1e-7 if exact else 1e-3)
  same = "bit for bit" if np.array_equal(losses, resumed) else "not bit for bit"
  values = {"losses": losses.tolist(), "resumed": resumed.tolist()}
  return dataclasses.replace(found, values=values, about=f"loss {losses[0]:.2f} to {losses[-1]:.2f}; {same}")


def _train_losses(path: pathlib.Path) -> np.ndarray:
  found = np.array([record["loss"] for record in read_metrics(path) if record["kind"] == "train"])
  if len(found) != _RUN:
    raise RuntimeError(f"{len(found)} records of training: expected {_RUN}")
  return found


@contextlib.contextmanager
def _silence():
  """Keeps what runs say out of the table."""
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    yield
