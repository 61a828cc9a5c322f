"""Scores to `Routing`: every routing method of the literature behind one interface.

`methods/` holds one published method a file: its equation as a pure function, its section of the config, its module.
Importing the package imports all of them, so adding a router is adding a file. `solvers/` holds what they compute with.
"""

import moe.routing.methods  # noqa: F401, registers every method
from moe.routing.groups import Groups
from moe.routing.router import Router, RouterConfig, RouterState, Site
from moe.routing.types import Policy, RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting, SoftRouting
from moe.routing.weights import routing_weights

__all__ = [
  "Groups",
  "Policy",
  "RaggedRouting",
  "Router",
  "RouterConfig",
  "RouterInput",
  "RouterOutput",
  "RouterState",
  "Routing",
  "Site",
  "SlotRouting",
  "SoftRouting",
  "routing_weights",
]
