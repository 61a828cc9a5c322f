"""Floating-point operations of matrix products, from their shapes; a multiplication and an addition count as two."""

import math
import re

import numpy as np

from moe.planning.hlo import Computation, Instruction


def product_flops(instruction: Instruction, computation: Computation) -> int:
  """FLOPs of a `dot` or a `convolution`, and those that a Pallas kernel states; 0 for anything else."""
  if instruction.opcode == "custom-call":
    said = re.search(r'"cost_estimate":\s*\{[^}]*"flops":\s*"?(\d+)', instruction.attributes)
    return int(said[1]) if said else 0
  if instruction.opcode not in ("dot", "convolution"):
    return 0
  left, right = (computation.instructions[name].shapes[0].dims for name in instruction.operands[:2])
  out = instruction.shapes[0].dims
  if instruction.opcode == "dot":
    return 2 * math.prod(out) * math.prod(left[axis] for axis in instruction.integers("lhs_contracting_dims"))
  return _convolution_flops(instruction, left, right, out)


def _convolution_flops(
  instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> int:
  """The TPU compiler writes products as convolutions with windows over padding; only elements of the input count."""
  input_labels, kernel_labels, out_labels = re.split("_|->", instruction.attribute("dim_labels"))
  sizes = dict(zip(input_labels, left)), dict(zip(kernel_labels, right)), dict(zip(out_labels, out))
  windows = _windows(instruction)
  spatial = math.prod(
    _meetings(sizes[0][axis], sizes[1][axis], sizes[2][axis], **window)
    for axis, window in zip(sorted(set(input_labels) - set("bf")), windows, strict=True)
  )
  batch = sizes[2]["b"] // int(instruction.attribute("batch_group_count") or 1)
  return 2 * batch * sizes[2]["f"] * sizes[1]["i"] * spatial


def _windows(instruction: Instruction) -> list[dict[str, int]]:
  """Stride, padding and dilations of every spatial axis."""
  fields = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window") or ""))
  count = len(fields["size"].split("x")) if fields else 0

  def each(name: str, default: str) -> list[str]:
    return fields[name].split("x") if name in fields else [default] * count

  columns = [each("stride", "1"), each("pad", "0_0"), each("lhs_dilate", "1"), each("rhs_dilate", "1")]
  return [
    {"stride": int(stride), "pad": int(pad.split("_")[0]), "dilate_input": int(a), "dilate_kernel": int(b)}
    for stride, pad, a, b in zip(*columns)
  ]


def _meetings(size: int, kernel: int, out: int, stride: int, pad: int, dilate_input: int, dilate_kernel: int) -> int:
  """Pairs of an output and a kernel index that meet an input, rather than padding or a gap between dilated inputs."""
  met = np.arange(out)[:, None] * stride - pad + np.arange(kernel) * dilate_kernel  # index in the dilated input
  return int(((met % dilate_input == 0) & (met >= 0) & (met < size * dilate_input)).sum())
