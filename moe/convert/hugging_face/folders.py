"""The two conversions: a folder of Hugging Face to the workdir of a run, and back."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from moe.config import ConfigError, build, in_section, require
from moe.convert.hugging_face.places import EMBEDDING, EMBEDDINGS, HEAD, UNUSED, Arrays, places_of
from moe.convert.hugging_face.settings import from_settings, to_settings
from moe.convert.hugging_face.tensor_files import NewTensorFiles, TensorFiles
from moe.convert.new_run import new_array, new_workdir, write_run
from moe.data import Vocabulary, load_vocabulary
from moe.evaluation.restore import open_checkpoints, stored_vocabulary
from moe.files import local_path
from moe.models import ModelConfig
from moe.parallel.mesh import make_mesh
from moe.training.experiment import load_config
from moe.training.state import abstract_model
from moe.training.workdir import Workdir

_CONFIG, _VOCABULARY, _TOKENIZER = "config.json", "spiece.model", "tokenizer_config.json"


def from_folder(folder: str, workdir: str, vocabulary: str = "") -> None:
  """Makes a run of a Hugging Face folder, and prints what it is.

  Args:
    folder: with config.json, safetensors and spiece.model.
    workdir: of the new run.
    vocabulary: a SentencePiece model, or "bytes"; empty for the folder's own.

  Raises:
    ConfigError: what is wrong with the folder, before anything is written.
    CheckpointError, WorkdirError: as `write_run`.
  """
  target, source = new_workdir(workdir), local_path("--folder", folder)
  require(source.is_dir(), "--folder", str(source), "expected a folder")
  settings = _read_json(source / _CONFIG)
  with in_section(_CONFIG):
    section = from_settings(settings)
  model = build(ModelConfig, section, _CONFIG)
  words = _read_vocabulary(source, settings, vocabulary)
  wanted = f"expected at least {words.size}, the tokens of {words.name}"
  require(words.size <= model.vocab_size, f"{_CONFIG}.vocab_size", model.vocab_size, wanted)
  config = load_config(_run_of(section, settings, words))
  params = read_params(config.model, TensorFiles(source))
  size = sum(array.size for array in params.values())
  write_run(target, config, nnx.traversals.unflatten_mapping(params), {}, words)
  print(f"{size:,} parameters, {words.size:,} tokens in the vocabulary; written to {target.root} as step 0")


def read_params(model: ModelConfig, files: TensorFiles) -> Arrays:
  """Our parameters by their paths, one tensor at a time.

  Raises:
    ConfigError: the tensors are not those of the model; lists all that are missing, surplus, or of another shape.
  """
  places = places_of(model)
  of_model = nnx.state(nnx.eval_shape(lambda: model.make(nnx.Rngs(0))), nnx.Param)
  leaves = nnx.traversals.flatten_mapping(nnx.to_pure_dict(of_model))
  shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  _check_tensors(files, {name: place.shape(shapes[place.path]) for name, place in places.items()})
  names = EMBEDDINGS if HEAD in places else (*EMBEDDINGS, HEAD)
  embedding, *copies = [name for name in names if name in files.shapes]
  params: Arrays = {}
  for name, place in places.items():
    if place.path not in params:
      params[place.path] = new_array(shapes[place.path])
    place.put(params[place.path], files.read(name if name in files.shapes else embedding))
  for name in copies:
    same = np.array_equal(files.read(name), params[places[EMBEDDING].path])
    require(same, f"--folder {name}", "other numbers", f"expected those of {embedding}, since they are shared")
  return params


def _check_tensors(files: TensorFiles, expected: Mapping[str, tuple[int, ...]]) -> None:
  """Requires the tensors of the model, of which the embedding may have other names too."""
  found = files.shapes
  copies = {name: expected[EMBEDDING] for name in (*EMBEDDINGS, HEAD)}
  absent = {*copies} if {*EMBEDDINGS} & {*found} else {HEAD}  # without one, the output shares the embedding
  wrong = [f"{name} is missing" for name in expected if name not in found and name not in absent]
  wrong += [f"{name} is surplus" for name in found if name not in expected and name not in (*copies, *UNUSED)]
  for name, shape in (copies | dict(expected)).items():
    if name in found and found[name] != shape:
      wrong.append(f"{name} has the shape {list(found[name])} and not {list(shape)}")
  require(not wrong, "--folder", f"{len(wrong)} tensors", f"expected those of {_CONFIG}: {'; '.join(wrong)}")


def to_folder(workdir: str, step: str, folder: str) -> None:
  """Makes a Hugging Face folder of a run's checkpoint, a parameter at a time, and prints what it is.

  Raises:
    ConfigError: the model is neither a T5 nor a Switch Transformer, or the folder exists.
    WorkdirError, CheckpointError: as `moe.evaluation.restore.restore`.
  """
  target = local_path("--folder", folder)
  require(not target.exists(), "--folder", str(target), "expected a folder that does not exist")
  run = Workdir(workdir)
  config = run.load_config()
  with in_section("config.model"):
    lengths = config.model.stack_lengths(config.data.inputs_length, config.data.targets_length)
    settings = to_settings(config.model, lengths)
  with open_checkpoints(run) as checkpoints:
    number = checkpoints.find(step, "--step")
    words = stored_vocabulary(config, checkpoints.describe(number)[1]["vocabulary"])
    model = abstract_model(config.model.make, make_mesh(devices=jax.local_devices()[:1]))
    leaves = nnx.traversals.flatten_mapping(model.params)
    places = places_of(config.model)
    unplaced = [".".join(map(str, path)) for path in leaves.keys() - {place.path for place in places.values()}]
    require(not unplaced, "config.model", sorted(unplaced), "expected only parameters that Hugging Face's model has")
    try:
      target.mkdir(parents=True)
    except OSError as error:
      raise ConfigError("--folder", str(target), f"expected a path that can be written ({error.strerror})") from None
    try:
      files = NewTensorFiles(target, {name: place.shape(leaves[place.path].shape) for name, place in places.items()})
      for path, array in checkpoints.parameters(number, model.params):
        for name, place in places.items():
          if place.path == path:
            files.put(name, place.get(array))
      _write_settings(target, settings, words)
    except BaseException:
      shutil.rmtree(target)
      raise
  note = ""
  if "expert_capacity" in settings:
    note = f"; experts have {settings['expert_capacity']:,} slots per sequence there, whatever its length"
  size = sum(leaf.size for leaf in leaves.values())
  print(f"{size:,} parameters of step {number} as {settings['model_type']}; written to {target}{note}")


def _write_settings(folder: pathlib.Path, settings: Mapping[str, Any], words: Vocabulary) -> None:
  """Writes all files but the tensors'; config.json last, without which nothing reads the others."""
  if words.model is not None:
    (folder / _VOCABULARY).write_bytes(words.model)
  tokenizer = "T5Tokenizer" if words.model is not None else "ByT5Tokenizer"
  texts = {
    _TOKENIZER: {"tokenizer_class": tokenizer, "extra_ids": words.extra_ids},
    "generation_config.json": {name: settings[name] for name in settings if name.endswith("_token_id")},
    _CONFIG: settings,
  }
  for name, content in texts.items():
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise ConfigError("--folder", str(path.parent), f"expected {path.name} in it") from None
  except (OSError, ValueError) as error:
    raise ConfigError("--folder", str(path), f"expected JSON ({error})") from None
  require(isinstance(content, dict), "--folder", str(path), "expected a JSON object")
  return content


def _read_vocabulary(folder: pathlib.Path, settings: Mapping[str, Any], given: str) -> Vocabulary:
  """The vocabulary, with as many sentinels as its tokenizer has, or as is usual."""
  path = given or str(folder / _VOCABULARY)
  if not given and not (folder / _VOCABULARY).exists():
    expected = f"expected {_VOCABULARY} in it; --vocabulary names another SentencePiece model, or is 'bytes' for ByT5"
    if (folder / "tokenizer.json").exists():
      expected += "; tokenizer.json is not read, the model that it was made of is needed"
    raise ConfigError("--folder", str(folder), expected)
  extra_ids = 0 if settings.get("model_type") == "mt5" else 100
  if (folder / _TOKENIZER).exists():
    extra_ids = _read_json(folder / _TOKENIZER).get("extra_ids", extra_ids)
    wanted = "expected a whole number, at least 0"
    require(type(extra_ids) is int and extra_ids >= 0, f"--folder {folder / _TOKENIZER}: extra_ids", extra_ids, wanted)
  try:
    return load_vocabulary(path, extra_ids)
  except ConfigError as error:
    raise ConfigError("--vocabulary", path, error.expected) from None


def _run_of(model: Mapping[str, Any], settings: Mapping[str, Any], words: Vocabulary) -> dict[str, Any]:
  """The config's tree of the new run, as far as a folder says it; its task is for users to name."""
  length = settings.get("n_positions", 512)
  return {
    "seed": 0,
    "model": dict(model),
    "data": {
      "source": {"name": "task", "task": "name_of_your_task"},
      "objective": "text_to_text",
      "vocabulary": words.name,
      "extra_ids": words.extra_ids,
      "inputs_length": length,
      "targets_length": 128,
      "batch_size": 16,
    },
    "optimizer": {"name": "adafactor", "learning_rate": 1e-3, "schedule": "constant"},
    "train": {"steps": 1000},
  }
