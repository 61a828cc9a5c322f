"""What the decoders' routers know about later tokens."""

from collections.abc import Sequence

from moe.report.decoder_leaks import decoder_leaks
from moe.report.section import Section
from moe.report.types import Run


def causality_section(runs: Sequence[Run]) -> Section | None:
  """What each decoder layer's choice of experts tells about the next token."""
  rows = [row for run in runs for row in _rows(run)]
  about = (
    "The checkpoint reads independent, uniformly drawn tokens, which tell nothing about each other. Whatever a token's"
    " experts tell about the next token, beyond what the token and its position tell, has leaked from the future. This"
    " is measured as mutual information (with the Miller-Madow correction), minus the same estimate for unrelated"
    " tokens, per expert and summed. A causal router reads 0 within its standard error. Large routing groups can hide a"
    " leak from this meter; what a router declares is tested by perturbation, bit by bit."
  )
  head = ["run", "decoder layer", "router", "in evaluation", "nats per token", "standard error"]
  return Section("Causality", about, "causality.html", {"head": head, "rows": rows}) if rows else None


def _rows(run: Run) -> list[list[str]]:
  router = run.trained.config.model.decoder_router
  if router is None or not run.batches:
    return []
  ids = next(layer.ids for name, layer in run.layers.items() if name.startswith("decoder"))
  found = decoder_leaks(run.trained, run.batches[0], ids)
  declared = "causal" if router.is_causal(training=False) else "sees later tokens"
  return [
    [run.label, f"layer_{index}", router.name, declared, f"{nats:.4f}", f"{error:.4f}"]
    for index, (nats, error) in enumerate(zip(found.nats, found.standard_error, strict=True))
  ]
