"""Which data sets lie prepared in a TFDS directory, read from its files alone, without TensorFlow."""

import json
import os
import pathlib


def tfds_directory(data_dir: str) -> pathlib.Path:
  """The directory itself; of an empty one TFDS's default."""
  found = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(os.path.expanduser(found))


def prepared_examples(data_dir: str, dataset: str) -> dict[str, int]:
  """The number of examples by "NAME/VERSION SPLIT" of a prepared data set; {} if it is not there.

  Args:
    data_dir: the TFDS directory; empty for its default.
    dataset: such as "glue/cola:2.0.0"; without a version, the newest one that is there.
  """
  name, _, version = dataset.partition(":")
  found = tfds_directory(data_dir).glob(f"{name}/{version or '*.*.*'}/dataset_info.json")
  newest = max(found, key=lambda path: _numbers(path.parent.name), default=None)
  if newest is None:
    return {}
  splits = json.loads(newest.read_text()).get("splits", [])
  return {f"{name}/{newest.parent.name} {one['name']}": sum(map(int, one.get("shardLengths", []))) for one in splits}


def how_to_prepare(dataset: str, data_dir: str) -> str:
  """The end of an error: the command that prepares a data set in a TFDS directory; if empty, in its default."""
  option = f" --data_dir={data_dir}" if data_dir else ""
  return f"'tfds build {dataset}{option}' prepares it"


def _numbers(version: str) -> list[int]:
  return [int(part) if part.isdigit() else 0 for part in version.split(".")]
