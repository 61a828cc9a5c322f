"""Where each tensor of Hugging Face's T5 and Switch Transformers is in our parameters."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from moe.models import ModelConfig, StackConfig
from moe.models.stack import units_of
from moe.nn.activations import GATED

Path = tuple[str | int, ...]
Arrays = dict[Path, np.ndarray]

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
# Files may have the embedding under any of these names, or several times.
EMBEDDINGS = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Older files of T5 have this table, which nothing reads.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

_NETWORK = {"wi": "up", "wo": "down"}
_GATED_NETWORK = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


@dataclasses.dataclass(frozen=True)
class Place:
  """A part of one of our arrays.

  Attributes:
    path: of the parameter.
    index: of the part, in the parameter's leading axes.
    transposed: whether the tensor is our matrix transposed: PyTorch's have the outputs first.
  """

  path: Path
  index: tuple[int, ...] = ()
  transposed: bool = False

  def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
    """Hugging Face's shape of the tensor, given that of our parameter."""
    shape = parameter[len(self.index) :]
    return shape[::-1] if self.transposed else shape

  def get(self, array: np.ndarray) -> np.ndarray:
    """The tensor, out of our array; a view."""
    part = array[self.index]
    return part.T if self.transposed else part

  def put(self, array: np.ndarray, tensor: np.ndarray) -> None:
    """Writes the tensor into our array."""
    array[self.index] = tensor.T if self.transposed else tensor


def places_of(model: ModelConfig) -> dict[str, Place]:
  """The place of each tensor, by its name there, in the order of computation."""
  places = {EMBEDDING: Place(("embedding", "table"))}
  for side, stack in model.stacks.items():
    places[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = Place((side, "bias", "table"))
    for number, (path, repeat) in enumerate(_blocks(side, stack)):
      for name, place in _block(model, stack, side, stack.has_experts[number]):
        whole = Place((*path, *place.path), (repeat, *place.index), place.transposed)
        places[f"{side}.block.{number}.layer.{name}"] = whole
    places[f"{side}.final_layer_norm.weight"] = Place((side, "norm", "scale"))
  if not model.tie_embeddings:
    places[HEAD] = Place(("embedding", "head"), (), True)
  return places


def _blocks(side: str, stack: StackConfig) -> Iterator[tuple[Path, int]]:
  """For each layer of a stack, the path of its block and the block's index among its unit's repeats."""
  for unit, (layers, repeats) in enumerate(units_of(stack.kinds)):
    for repeat in range(repeats):
      for block in range(len(layers)):
        yield (side, "units", unit, "blocks", block), repeat


def _block(model: ModelConfig, stack: StackConfig, side: str, experts: bool) -> Iterator[tuple[str, Place]]:
  """The tensors of a block, by their names after `layer.` there."""
  attentions = {"attention": "SelfAttention"} | ({"cross_attention": "EncDecAttention"} if side == "decoder" else {})
  for part, (ours, theirs) in enumerate(attentions.items()):
    for name, our_name in _ATTENTION.items():
      yield f"{part}.{theirs}.{name}.weight", Place((ours, our_name), (), True)
    yield f"{part}.layer_norm.weight", Place((ours.removesuffix("_attention") + "_norm", "scale"))
  part = len(attentions)
  yield f"{part}.layer_norm.weight", Place(("feed_forward_norm", "scale"))
  if not experts:
    network = "DenseReluDense" if all(each.moe is None for each in model.stacks.values()) else "mlp"
    names = _GATED_NETWORK if model.feed_forward in GATED else _NETWORK
    for name, our_name in names.items():
      yield f"{part}.{network}.{name}.weight", Place(("feed_forward", our_name), (), True)
    return
  yield f"{part}.mlp.router.classifier.weight", Place(("moe", "router", "kernel"), (), True)
  if getattr(stack.moe.router, "router_bias", False):
    yield f"{part}.mlp.router.classifier.bias", Place(("moe", "router", "kernel_bias"))
  for expert in range(stack.moe.num_experts):
    for name, our_name in _NETWORK.items():
      # Our `down` of experts is used transposed: it is as in PyTorch.
      place = Place(("moe", "experts", our_name), (expert,), our_name != "down")
      yield f"{part}.mlp.experts.expert_{expert}.{name}.weight", place
