"""From scores to a `Routing`: every published routing method behind one interface.

`methods/` has one published method per file: its equation as a pure function, its config, its module. Importing the
package imports them all, so adding a router means adding a file. `solvers/` has the algorithms they use.
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
