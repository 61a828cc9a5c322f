"""Whether a machine computes what it should, and how fast: `python -m moe.check`.

`kernels`, `routers`, `travel` and `training` compare the device with the CPU; `speed` measures layers and train steps
next to dense ones. What they time, `layer_programs` and `step_programs`, the benchmarks in `scripts/` time too.
"""
