"""Scores to `Routing`: every routing method of the literature behind one interface.

Each family is one file of this folder: the paper's equations as pure functions, then the router module that
`@register`s itself. Importing the package imports every such file, so adding a router is adding a file.
"""

import importlib
import pkgutil

from moe.routing.groups import Groups
from moe.routing.router import ROUTERS, Router, RouterConfig, RouterState, Site, register
from moe.routing.types import Policy, RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting, SoftRouting

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{_module.name}")

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
