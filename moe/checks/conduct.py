"""A check of this machine from the first row to the last."""

import functools
import pathlib
import time
from collections.abc import Callable, Collection, Mapping

import jax

from moe.checks.agreement import Case, agreement
from moe.checks.journal import Finding, Journal
from moe.checks.kernels import kernel_cases
from moe.checks.machine import device_gib, machine, platform_of
from moe.checks.routers import router_case, router_names
from moe.checks.speed import measure_speed, sizes_for
from moe.checks.training import run_and_resume, step_checks
from moe.checks.travel import direction_cases, layer_cases, mesh_cases
from moe.parallel.platform import start_platform
from moe.training.trainer import use_compilation_cache


def check_machine(parts: Collection[str], results: pathlib.Path | None, *, quick: bool) -> bool:
  """Runs the parts, prints a table, and says whether every row is ok.

  Args:
    parts: of `moe.check.PARTS`.
    results: the file to write; None for none.
    quick: whether shapes are small everywhere, and programs compiled in haste.

  Raises:
    ConfigError: JAX finds no device.
  """
  began = time.monotonic()
  start_platform()
  use_compilation_cache("")
  if quick:
    jax.config.update("jax_disable_most_optimizations", True)
  found, device = machine(), jax.devices()[0]
  platform = platform_of(device)
  packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
  memory = f" with {found['device_gib']} GiB" if found["device_gib"] else ""
  print(
    f"{found['devices']} x {found['device']} ({platform}){memory}; {found['cores']} cores with {found['host_gib']} GiB"
  )
  print(f"Python {found['python']}, {packages}\n", flush=True)

  journal = Journal(found | {"quick": quick, "parts": list(parts)}, results)
  if "kernels" in parts:
    cases = kernel_cases(platform, quick=quick)
    journal.add_all("kernels", {name: functools.partial(agreement, case) for name, case in cases.items()})
  if "travel" in parts:
    cases_of = direction_cases(quick=quick) | layer_cases(quick=quick) | mesh_cases(jax.devices())
    journal.add_all("travel", _agreements(cases_of))
  if "routers" in parts:
    journal.add_all("routers", _agreements({name: functools.partial(router_case, name) for name in router_names()}))
  if "training" in parts:
    journal.add_all("training", step_checks(quick=quick))
    journal.add("training", "a run is killed and resumed", run_and_resume)
  if "speed" in parts:
    measure_speed(journal, sizes_for(platform, device_gib(device), quick=quick))
  journal.finish()

  failed, took = journal.failed, time.monotonic() - began
  print(f"\n{len(journal.rows)} rows in {took:.0f} s; " + (f"{len(failed)} FAILED:" if failed else "all ok"))
  for row in failed:
    print(f"  {row['part']}: {row['check']}: {row.get('exception') or row['worst']}")
  return not failed


def _agreements(cases: Mapping[str, Callable[[], Case]]) -> dict[str, Callable[[], Finding]]:
  """Checks that make their case when they run, since making a layer takes the compiler too."""

  def check(make: Callable[[], Case]) -> Finding:
    return agreement(make())

  return {name: functools.partial(check, make) for name, make in cases.items()}
