"""What is read of a TFDS directory's own files."""

import json

from moe.data.formats.prepared import prepared_examples, tfds_directory


def write(root, folder, splits):
  (root / folder).mkdir(parents=True)
  (root / folder / "dataset_info.json").write_text(json.dumps({"name": "x", "splits": splits}))


def test_examples_of_all_shards_count_and_the_newest_version_is_taken(tmp_path):
  write(tmp_path, "mnist/3.0.1", [{"name": "train", "shardLengths": ["1"]}])
  write(tmp_path, "mnist/3.0.10", [{"name": "train", "shardLengths": ["2", "3"]}, {"name": "test"}])
  assert prepared_examples(str(tmp_path), "mnist") == {"mnist/3.0.10 train": 5, "mnist/3.0.10 test": 0}
  assert prepared_examples(str(tmp_path), "mnist:3.0.1") == {"mnist/3.0.1 train": 1}
  assert prepared_examples(str(tmp_path), "cifar10") == {}


def test_the_numbers_are_those_of_tfds(data_dir):
  found = prepared_examples(str(data_dir / "tfds"), "glue/cola:2.0.0")
  assert found == {
    f"glue/cola/2.0.0 {split}": n for split, n in (("train", 8551), ("validation", 1043), ("test", 1063))
  }


def test_an_empty_directory_is_the_default_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert tfds_directory("") == tmp_path and tfds_directory("here").name == "here"
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert tfds_directory("") == tmp_path / "tensorflow_datasets" and tfds_directory("~/tfds") == tmp_path / "tfds"
