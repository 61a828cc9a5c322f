"""Pictures: class folders and TFDS data sets, augmentations, positions, and what is wrong with them in one line."""

import itertools

import numpy as np
import pytest
from PIL import Image

from moe.config import ConfigError, build
from moe.data import DataConfig, DataError, make_pipeline, make_vocabulary
from moe.data.images import pictures
from moe.data.objectives import classification
from moe.data.sources import image_folder
from moe.row_format import PictureFormat
from tests.data.conftest import assert_same_batches

COLOUR, GREY = PictureFormat(8, 3, 4), PictureFormat(8, 1, 4)
CLASSES = ("ant", "bee", "cow")


def write(path, pixels) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
  """20 pictures of each class, 8 x 8 in colour; the first pixel's red is 100 x label + number."""
  root, draw = tmp_path / "pictures", np.random.default_rng(0)
  for (label, name), number in itertools.product(enumerate(CLASSES), range(20)):
    pixels = draw.integers(256, size=(8, 8, 3))
    pixels[0, 0, 0] = 100 * label + number
    write(root / name / f"{number:02}.png", pixels)
  return root


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(image_folder, "BLOCK_PICTURES", 10)


def config(
  path, *, source: dict | None = None, targets_length: int = 1, batch_size: int = 4, streams: int = 1, **options
):
  fields = {
    "source": source or {"name": "image_folder", "path": str(path), "validation_fraction": 0.1},
    "objective": {"name": "classification", **options},
    "inputs_length": 4,
    "targets_length": targets_length,
    "batch_size": batch_size,
    "streams": streams,
  }
  return build(DataConfig, fields, "config.data")


def batches(data, number: int, split: str = "train", *, format=COLOUR, training=True, rows=None, position=None):
  """The first batches of a split from a position on, and the position after them."""
  with make_pipeline(data, format, split, training=training, rows=rows) as pipeline:
    if position is not None:
      pipeline.restore(position)
    return list(itertools.islice(pipeline, number)), pipeline.position


def red(images) -> list[int]:
  """The red of the first pixel of each, as it is stored."""
  return np.rint((np.asarray(images)[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def test_an_epoch_has_every_picture_of_a_class_folder_once_with_its_label(folder):
  data = config(folder)
  assert make_vocabulary(data).names == CLASSES
  found = {split: batches(data, 100, split, training=False)[0] for split in ("train", "validation")}
  seen = []
  for each in found.values():
    images, labels, real = (
      np.concatenate([batch[name] for batch in each]) for name in ("images", "targets", "inputs_segments")
    )
    real = real[:, 0] > 0
    assert [value // 100 for value in red(images[real])] == labels[real, 0].tolist()
    seen += red(images[real])
  assert sorted(seen) == [100 * label + number for label in range(3) for number in range(20)]
  assert sum(int(batch["loss_weights"].sum()) for batch in found["validation"]) == 6, "a tenth of every class"


def test_pixels_are_normalised(folder):
  (batch,), _ = batches(config(folder, mean=[0.0, 0.5, 0.5], std=[1.0, 0.5, 0.25]), 1, training=False)
  (plain,), _ = batches(config(folder, mean=[0.0], std=[1.0]), 1, training=False)
  assert plain["images"].min() >= 0
  assert plain["images"].max() <= 1
  np.testing.assert_allclose(batch["images"], (plain["images"] - [0, 0.5, 0.5]) / [1, 0.5, 0.25], atol=1e-6)


def test_training_is_augmented_and_evaluation_is_not(folder):
  options = {"crop": "pad", "padding": 2, "flip": True}
  plain, _ = batches(config(folder), 3, "validation", training=False)
  evaluated, _ = batches(config(folder, **options), 3, "validation", training=False)
  for one, other in zip(plain, evaluated, strict=True):
    assert_same_batches(one, other)
  trained, _ = batches(config(folder, **options), 40)
  assert len(np.unique(np.concatenate([batch["images"] for batch in trained]), axis=0)) > 120, "another in every epoch"


def test_a_padded_crop_is_a_part_of_the_picture_with_black_around_it():
  pixels = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
  found = {classification.shifted(pixels, 1, np.random.default_rng(i))[:, :, 0].tobytes() for i in range(200)}
  whole = np.pad(pixels[:, :, 0], 1)
  assert found == {whole[i : i + 3, j : j + 3].tobytes() for i in range(3) for j in range(3)}


def test_an_inception_crop_takes_any_size_and_evaluates_the_middle():
  pixels = np.zeros((40, 64, 3), np.uint8)
  pixels[2:38, 14:50] = 200  # around the square in the middle of 7/8 of the shorter side, 35 x 35
  assert (classification.middle(pixels, 8) == 200).all()
  for seed in range(20):
    part = classification.random_part(pixels, 8, 0.05, np.random.default_rng(seed))
    assert part.shape == (8, 8, 3)


def test_mixup_mixes_two_pictures_and_their_labels(folder):
  data = config(folder, mixup=1.0, targets_length=2, mean=[0.0], std=[1.0])
  found, _ = batches(data, 20)
  weights = np.concatenate([batch["loss_weights"] for batch in found])
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
  assert len(np.unique(weights[:, 0])) > 70
  evaluated, _ = batches(data, 1, "validation", training=False)
  np.testing.assert_array_equal(evaluated[0]["loss_weights"], [[1, 0]] * 4)
  source = data.source.make("train", None, {}, 0)
  block = next(source.blocks(0, 0, 0))
  draw = np.random.default_rng((0, 2, 0, 0, 0, 5))  # the seed, the purpose, epoch, shard, block, picture
  share, other = draw.beta(1.0, 1.0), int(draw.integers(len(block)))
  image, targets, weights = data.objective.make(data.row_shape(COLOUR), make_vocabulary(data))(block, (0, 2, 0, 0, 0))[
    5
  ]()
  ours, others = (block.decoded(i, COLOUR, any_size=False) / 255 for i in (5, other))
  np.testing.assert_allclose(image, share * ours + (1 - share) * others, atol=1e-6)
  assert targets.tolist() == block.labels[[5, other]].tolist()
  np.testing.assert_allclose(weights, [share, 1 - share], rtol=1e-6)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_restored_position_gives_the_batches_that_would_have_come(folder, small_blocks, streams):
  data = config(folder, streams=streams, crop="pad", flip=True, mixup=0.2, targets_length=2)
  whole, _ = batches(data, 30)
  for done in (1, 7, 20):
    _, position = batches(data, done)
    rest, _ = batches(data, 30 - done, position=position)
    for one, other in zip(whole[done:], rest, strict=True):
      assert_same_batches(one, other)


def test_hosts_have_the_rows_that_one_would_have(folder, small_blocks):
  data = config(folder, streams=2, crop="pad", flip=True)
  whole, _ = batches(data, 20)
  halves = [batches(data, 20, rows=np.array(rows))[0] for rows in ([0, 1], [2, 3])]
  for one, *parts in zip(whole, *halves, strict=True):
    assert_same_batches(one, {name: np.concatenate([part[name] for part in parts]) for name in one})


def test_grey_pictures_can_have_three_equal_channels(tmp_path):
  for name in CLASSES:
    write(tmp_path / name / "1.png", np.arange(64).reshape(8, 8))
  (batch,), _ = batches(config(tmp_path), 1)
  np.testing.assert_array_equal(batch["images"][..., 0], batch["images"][..., 2])


def test_a_validation_folder_is_read_whole(folder, tmp_path):
  write(tmp_path / "other" / "bee" / "x.png", np.full((8, 8, 3), 51))
  source = {"name": "image_folder", "path": str(folder), "validation_path": str(tmp_path / "other")}
  found, _ = batches(config(folder, source=source), 5, "validation", training=False)
  assert len(found) == 1
  assert (found[0]["targets"][0, 0], found[0]["inputs_segments"][:, 0].tolist()) == (1, [1, 0, 0, 0])
  assert len(batches(config(folder, source=source), 100, "train", training=False)[0]) == 15, "nothing is held out"


def broken_folder(kind: str, folder, tmp_path):
  """The format that the folder is read with, after one thing in it is wrong."""
  if kind == "text":
    (folder / "bee" / "notes.png").write_text("no picture")
  elif kind == "cut":
    whole = (folder / "bee" / "03.png").read_bytes()
    (folder / "bee" / "03.png").write_bytes(whole[: len(whole) // 2])
  elif kind == "size":
    write(folder / "cow" / "99.png", np.zeros((8, 9, 3)))
  elif kind == "depth":
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "cow" / "99.png")
  return GREY if kind == "channels" else COLOUR


@pytest.mark.parametrize(
  ("kind", "name", "said"),
  [
    ("text", "notes.png", "is no picture that can be read (UnidentifiedImageError)"),
    ("cut", "03.png", "is damaged"),
    ("size", "99.png", "has 8 x 9 pixels: expected 8 x 8, config.model.image_size, or data.objective.crop"),
    ("depth", "99.png", "has pixels of mode 'I;16': expected grey or colour of 8 bits"),
    ("channels", ".png", "has 3 channels: expected 1, config.model.channels"),
  ],
)
def test_a_picture_that_cannot_be_used_is_named(kind, name, said, folder, tmp_path):
  format = broken_folder(kind, folder, tmp_path)
  with pytest.raises(DataError) as error:
    batches(config(folder), 50, format=format, training=False)
  assert error.value.name.endswith(name)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_headers_are_checked_before_a_batch_is_asked_for(folder):
  (folder / "bee" / "notes.png").write_text("no picture")
  with pytest.raises(DataError, match=r"notes\.png: is no picture"):
    make_pipeline(config(folder), COLOUR, "train", training=True)


def test_a_folder_without_classes_or_with_others_is_refused(folder, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(ConfigError, match="expected a folder for each class in it"):
    batches(config(tmp_path / "empty"), 1)
  with pytest.raises(ConfigError, match="expected a folder of class folders"):
    batches(config(tmp_path / "none_such"), 1)
  write(tmp_path / "other" / "dog" / "x.png", np.zeros((8, 8, 3)))
  source = {"name": "image_folder", "path": str(folder), "validation_path": str(tmp_path / "other")}
  with pytest.raises(DataError, match=r"dog: is no class of .*: expected one of ant, bee, cow"):
    batches(config(folder, source=source), 1, "validation", training=False)


def test_a_label_outside_the_classes_is_named():
  block = pictures.Pictures(lambda i: b"", np.array([0, 2, -1]), lambda i: f"picture {i}")
  data = config("x")
  objective = data.objective.make_plain(data.row_shape(COLOUR), type("Two", (), {"size": 2}))
  with pytest.raises(DataError, match="picture 1: has label 2: expected from 0 to 1, the classes"):
    objective(block, (0,))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (
      {"source": "standard_library", "vocabulary": "bytes"},
      "objective.name = 'classification': expected one of causal_lm",
    ),
    ({"objective": "prefix_lm"}, "objective.name = 'prefix_lm': expected one of classification"),
    ({"targets_length": 2}, "targets_length = 2: expected 1, the label of a picture"),
    (
      {"objective": {"name": "classification", "mixup": 0.2}},
      "targets_length = 1: expected 2, the labels of a picture",
    ),
    ({"objective": {"name": "classification", "std": [0.0]}}, "objective.std = [0.0]: expected more than 0"),
    ({"objective": {"name": "classification", "mean": [0.1, 0.2]}}, "expected a number for all channels"),
    ({"vocabulary": "bytes"}, "vocabulary = 'bytes': expected the vocabulary that"),
  ],
)
def test_a_data_section_that_cannot_be_is_refused(changes, said, folder):
  fields = {"source": {"name": "image_folder", "path": str(folder)}, "objective": "classification"}
  sizes = {"inputs_length": 4, "targets_length": 1, "batch_size": 4}
  with pytest.raises(ConfigError) as error:
    make_pipeline(build(DataConfig, fields | sizes | changes, "config.data"), COLOUR, "train", training=True)
  assert said in str(error.value)


def test_real_data_sets_are_read_by_name(data_dir):
  """MNIST and the JPEG CIFAR-10: their sizes, their classes, their first batches; and what they do not fit."""
  tfds = str(data_dir / "tfds")
  for dataset, format, names in (
    ("mnist", PictureFormat(28, 1, 4), [str(digit) for digit in range(10)]),
    ("cifar10_jpeg", PictureFormat(32, 3, 4), ["airplane", "automobile"]),
  ):
    data = config("", source={"name": "image_dataset", "dataset": dataset, "data_dir": tfds}, batch_size=64)
    assert list(make_vocabulary(data).names[: len(names)]) == names
    found, position = batches(data, 4, format=format)
    rest, _ = batches(data, 2, format=format, position=position)
    again, _ = batches(data, 6, format=format)
    assert_same_batches(rest[1], again[5])
    assert len(np.unique(np.concatenate([batch["targets"] for batch in found]))) == 10
    assert 0.1 < np.abs(found[0]["images"]).mean() < 1
  with pytest.raises(DataError, match="cifar10_jpeg: has 3 channels: expected 1"):
    batches(data, 1, format=GREY)
  with pytest.raises(DataError, match="mnist: has 28 x 28 pixels: expected 8 x 8"):
    mnist = {"name": "image_dataset", "dataset": "mnist", "data_dir": tfds}
    batches(config("", source=mnist), 1, format=GREY)
  with pytest.raises(DataError, match=r"split 'test2': expected one of .*, the splits of mnist"):
    batches(config("", source=mnist | {"train_split": "test2"}), 1, format=GREY)
  with pytest.raises(ConfigError, match="expected a data set with a picture `image` and a class `label`; it has"):
    batches(config("", source={"name": "image_dataset", "dataset": "glue/cola", "data_dir": tfds}), 1)
  with pytest.raises(ConfigError, match="expected a TFDS data set in"):
    batches(config("", source={"name": "image_dataset", "dataset": "none_such", "data_dir": tfds}), 1)
