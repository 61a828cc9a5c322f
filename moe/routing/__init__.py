"""Scores to `Routing`: every routing method of the literature behind one interface.

Each family is one file of this folder: the paper's equations as pure functions, then the router module that
`@register`s itself. Importing the package imports every such file, so adding a router is adding a file.
"""

import moe.routing.methods  # noqa: F401, registers every method
from moe.routing.groups import Groups
from moe.routing.router import ROUTERS, Router, RouterConfig, RouterState, Site, register
from moe.routing.types import Policy, RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting, SoftRouting

__all__ = [
  "ROUTERS",
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
  "register",
]
