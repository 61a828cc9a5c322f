"""The table of routers agrees with the code."""

from moe.routing import RouterConfig
from scripts.benchmarks.router_table import router_rows, router_table


def test_every_router_has_one_row_and_families_are_together():
  names = [row["router"].strip("`") for row in router_rows()]
  assert sorted(names) == sorted(RouterConfig.choices)
  modules = [RouterConfig.choices[name].__module__ for name in names]
  assert modules == sorted(modules)


def test_rows_read_flags_losses_parameters_and_state_from_the_code():
  found = {row["router"].strip("`"): row for row in router_rows()}
  assert found["expert_choice"]["causal"] == "no" and found["expert_choice"]["auxiliary losses"] == "-"
  assert found["switch"]["causal"] == "yes" and found["switch"]["auxiliary losses"] == "balance"
  assert found["switch"]["parameters"] == "kernel [d, E]" and found["switch"]["state"] == "-"


def test_costs_are_the_last_columns_and_blank_where_not_measured():
  lines = router_table({"switch": {"budget": 1, "ratio": 1.234, "done": 1.25, "work_ratio": 0.987}})
  assert next(line for line in lines if "`switch`" in line).endswith("| 1.23 (1.0) | 0.99 (1.2) |")
  assert next(line for line in lines if "`expert_choice`" in line).endswith("|  |  |")
