"""The Mixture-of-Experts layer, end to end.

`layer` is the layer, `dispatch` carries tokens to experts and back on one device, `network` has the experts.
`exchange/` does what `dispatch` does over a mesh; `kernels/` has the grouped matrix products of dropless routing.
"""

from moe.experts.layer import MoE
from moe.experts.report import LayerReport

__all__ = ["LayerReport", "MoE"]
