"""The safetensors files of a folder, read and written a tensor at a time.

What was read of a memory-mapped file counts as memory of the process. So every tensor is read from a map of its own,
which is gone when it is copied.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401, gives NumPy bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from moe.config import ConfigError, first_line, require

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

_FLOATS = ("F32", "BF16", "F16")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_OTHERS = ("tf_model.h5", "flax_model.msgpack")


class TensorFiles:
  """The tensors of a folder.

  Attributes:
    shapes: by name.

  Raises:
    ConfigError: there are no safetensors files, or they are damaged, or hold other numbers than floating-point ones.
  """

  def __init__(self, folder: pathlib.Path):
    self._files: dict[str, pathlib.Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for path in _files_of(folder):
      try:
        with safe_open(path, "np") as file:
          slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
          found = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
      except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
      for name, (shape, dtype) in found.items():
        wanted = f"expected one of {', '.join(_FLOATS)}, the numbers of {name}"
        require(dtype in _FLOATS, f"--folder {path}", dtype, wanted)
        self._files[name], self.shapes[name] = path, shape

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32, which holds every number of the shorter types.

    Raises:
      ConfigError: it cannot be read, or holds an infinity or a NaN.
    """
    path = self._files[name]
    try:
      with safe_open(path, "np") as file:
        tensor = np.asarray(file.get_tensor(name), np.float32)
    except (SafetensorError, OSError) as error:
      raise _damaged(path, error) from None
    require(bool(np.isfinite(tensor).all()), f"--folder {path}", name, "expected finite numbers")
    return tensor


class NewTensorFiles:
  """Files of float32 tensors as Hugging Face writes them; the tensors are put into them in any order.

  Args:
    folder: which has no such files yet.
    shapes: by name.
    shard_bytes: of tensors in a file, at most, unless one alone has more; with several files there is an index.
  """

  def __init__(self, folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], shard_bytes: int = SHARD_BYTES):
    self._places: dict[str, tuple[pathlib.Path, int, tuple[int, ...]]] = {}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for name, shape in shapes.items():
      if _size(shape) > room and shards[-1]:
        shards.append({})
        room = shard_bytes
      shards[-1][name] = shape
      room -= _size(shape)
    files = [WHOLE] if len(shards) == 1 else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in _numbers(shards)]
    for file, shard in zip(files, shards, strict=True):
      begin = _write_header(folder / file, shard)
      for name, shape in shard.items():
        self._places[name] = folder / file, begin, shape
        begin += _size(shape)
    if len(shards) > 1:
      index = {
        "metadata": {"total_size": sum(map(_size, shapes.values()))},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
      }
      (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

  def put(self, name: str, tensor: np.ndarray) -> None:
    """Writes one tensor."""
    path, begin, shape = self._places[name]
    assert tensor.shape == shape, (name, tensor.shape, shape)
    with path.open("r+b") as file:
      file.seek(begin)
      file.write(np.ascontiguousarray(tensor, "<f4").data)


def _numbers(shards: list[Any]) -> range:
  return range(1, len(shards) + 1)


def _size(shape: tuple[int, ...]) -> int:
  return 4 * int(np.prod(shape, dtype=np.int64))


def _write_header(path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
  """Begins a file of the format, of its final size: the length of the header, and the header in JSON.

  Returns:
    Where the numbers begin, which are in little-endian order.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    begin, end = end, end + _size(shape)
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with path.open("xb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
  return 8 + len(text)


def _files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """The file, or those that the index names."""
  if (folder / WHOLE).exists():
    return [folder / WHOLE]
  index = folder / INDEX
  if not index.exists():
    raise ConfigError("--folder", str(folder), _without_safetensors(folder))
  try:
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    paths = [folder / pathlib.PurePath(file).name for file in files]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(index, error) from None
  missing = [path.name for path in paths if not path.exists()]
  require(not missing, "--folder", str(folder), f"expected {', '.join(missing)}, which {INDEX} names")
  return paths


def _without_safetensors(folder: pathlib.Path) -> str:
  """What is expected of a folder without the files, given what it has instead."""
  expected = f"expected {WHOLE}, or {INDEX} and the files that it names"
  pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
  others = [name for name in _OTHERS if (folder / name).exists()]
  if pickles:
    expected += f"; {pickles[0]} is a pickle, which can run any code and is not read"
  elif others:
    expected += f"; {others[0]} is not read"
  if pickles or others:
    option = "" if pickles else f", from_{'tf' if others[0].endswith('h5') else 'flax'}=True"
    load = f"AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}{option}).save_pretrained({f'{folder}-safe'!r})"
    expected += f': python -c "from transformers import AutoModelForSeq2SeqLM; {load}" converts it, where it is trusted'
  return expected


def _damaged(path: pathlib.Path, error: Exception) -> ConfigError:
  return ConfigError("--folder", str(path), f"expected a whole file ({first_line(error)})")
