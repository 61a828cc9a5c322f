"""Scores to `Routing`: every routing method of the literature behind one interface.

Each family is one file of this folder: the paper's equations as pure functions, then the router module that
`@register`s itself. Importing the package imports every such file, so adding a router is adding a file.
"""

import importlib
import pkgutil

from moe.routing.router import ROUTERS, Router, RouterConfig, register
from moe.routing.types import RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting, SoftRouting

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
  "ROUTERS",
  "RaggedRouting",
  "Router",
  "RouterConfig",
  "RouterInput",
  "RouterOutput",
  "Routing",
  "SlotRouting",
  "SoftRouting",
  "register",
]
