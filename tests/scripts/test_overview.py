"""What the README and the benchmarks say at a glance."""

from scripts.overview import caption, draw, findings
from tests.studies.simulated import simulated_analysis

LAYER = {
  "rows": [
    {"sweep": sweep, "layer": layer, "at": at, "ratio": ratio}
    for sweep, layer, at, ratio in [
      ("ways", "expert choice", 256, 1.09),
      ("ways", "top-2", 4096, 0.92),
      ("ways", "Soft MoE", 4096, 7.34),
      ("groups", "expert choice", 256, 0.98),
      ("groups", "top-2", 256, 0.97),
      ("groups", "expert choice, one-hot masks", 256, 1.1),
    ]
  ]
}
SECONDS = {"expert choice, capacity 2": 1.5, "GLaM top-2, capacity 2": 1.5, "GLaM top-2, capacity 2.5": 1.6}
PLANS = {name: {"plan": {"seconds": seconds}} for name, seconds in (SECONDS | {"GLaM top-2, capacity 4": 2.0}).items()}
NATS = {"expert_choice, pool of 4": 0.2873, "expert_choice, pool of 64": 0.0033}
LEAKS = {
  "routers": {
    name: {"nats": nats}
    for name, nats in (NATS | {"position_grouped": -2e-5, "prefix_rank": 1e-5, "threshold": 0.0}).items()
  }
}


def test_findings_are_ratios_of_the_results():
  steps, leaks, layer = " ".join(findings(LAYER, LEAKS, PLANS).split()).split("- **")[1:]
  assert "1.00 times as long" in steps and "0.94 times at GLaM's own" in steps and "0.75 times at capacity 4" in steps
  assert (
    "tell 0.29 nats about the next token for a pool of 4 tokens and 0.003 for 64; the causal forms read at most 0.00002"
    in leaks
  )
  assert "take 0.92 to 1.09 times a dense layer" in layer


def test_the_caption_counts_methods_and_seeds_and_the_figure_is_small(tmp_path):
  losses = {"dense": 3.5, "expert_choice": 3.4, "gshard": 3.45, "switch": 3.44, "dropless_top2": 3.41}
  _, analysis = simulated_analysis(tmp_path / "runs", "convergence", losses)
  text = caption(analysis)
  assert text.startswith("![") and "](docs/overview.png)" in text
  assert "methods of measured FLOPs that are equal to within 0%, tuned alike, with 3 paired seeds" in " ".join(
    text.split()
  )
  draw(analysis, LAYER, tmp_path / "overview.png")
  assert 1000 < (tmp_path / "overview.png").stat().st_size < 300_000
