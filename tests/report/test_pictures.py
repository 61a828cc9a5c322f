"""The patches that each expert reads, drawn on the pictures."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from moe.evaluation.restore import Trained
from moe.parallel.mesh import make_mesh
from moe.report.collect import collect_runs
from moe.report.picture_maps import picture_maps
from moe.report.rendering import render_report
from moe.routing import SlotRouting, SoftRouting
from moe.training.experiment import load_config
from moe.training.trainer import train
from tests.training.pictures import COLOURS, vision_mapping, write_pictures

CLASSES = tuple(COLOURS)


def maps(routing, router: dict):
  """Of two pictures of four patches, of which the first is black, in a batch of three rows."""
  trained = Trained(load_config(vision_mapping("x", router)), 0, None, {}, {}, {}, make_mesh())
  batch = {
    "images": np.stack([np.full((8, 8, 3), level, np.float32) for level in (-1, 0.6, 0)]),
    "inputs_segments": np.array([[1] * 4, [1] * 4, [0] * 4], np.int32),
    "targets": np.array([[2], [0], [0]], np.int32),
  }
  return picture_maps(trained, CLASSES, batch, routing)


def pixels(url: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_an_expert_that_takes_tokens_has_these_patches_of_each_picture():
  # One layer, one group of the whole batch: expert 0 has patch 1 of the first picture and patch 3 of the second.
  token = jnp.array([[[[1, 7], [12, 12], [0, 2], [4, 12]]]])
  found = maps(SlotRouting(token, jnp.where(token < 12, 0.5, 0.0)), {"name": "expert_choice"})
  expected = np.zeros((2, 4, 4))
  expected[0, 1, 0] = expected[1, 3, 0] = expected[0, 0, 2] = expected[0, 2, 2] = expected[1, 0, 3] = 1
  np.testing.assert_array_equal(found.layers["encoder/layer_0"], expected)
  assert (found.labels, found.side, found.soft) == (["red", "blue"], 2, False)
  assert [np.unique(pixels(one)).tolist() for one in found.images] == [[0], [204]]


def test_soft_moes_maps_are_dispatch_weights_relative_to_the_largest():
  dispatch = np.full((1, 3, 4, 4, 1), 0.25, np.float32)
  dispatch[0, 0, :, 1, 0] = [0.1, 0.2, 0.3, 0.4]
  found = maps(SoftRouting(jnp.asarray(dispatch), jnp.full(dispatch.shape, 0.25)), {"name": "soft_moe"})
  np.testing.assert_allclose(found.layers["encoder/layer_0"][0, :, 1], [0.25, 0.5, 0.75, 1], rtol=1e-6)
  np.testing.assert_allclose(found.layers["encoder/layer_0"][1], 1, rtol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The report of a run of one step."""
  root = tmp_path_factory.mktemp("pictures")
  folder = write_pictures(root / "pictures")
  train(load_config(vision_mapping(folder, {"name": "soft_moe"}, steps=1)), root / "run")
  (found,) = collect_runs([str(root / "run")], 1)
  return found


def test_the_page_of_a_run_on_pictures_shows_them_and_no_passage(run):
  page = render_report([run])
  root = ElementTree.fromstring(page.split("\n", 1)[1])
  titles = [part.find("h2").text for part in root.iter("section")]
  assert "Patches of each expert" in titles
  assert "A passage, token by token" not in titles
  assert "img-src data:" in page
  images = list(root.iter("image"))
  assert len(images) == 4 * 4, "four pictures for each of four experts"
  assert {one.get("href") for one in images} == set(run.maps.images)
  shades = [rect for svg in root.iter("svg") if svg.find("image") is not None for rect in svg.iter("rect")]
  assert len(shades) == 16 * 4
  assert min(float(rect.get("fill-opacity")) for rect in shades) >= 0
  assert run.texts == {0: "0,0", 1: "0,1", 2: "1,0", 3: "1,1"}
