"""What cannot fit is refused from sizes alone, with what would; nothing is allocated, and no integer overflows."""

import pytest

from moe.config import ConfigError, override
from moe.parallel import memory
from moe.parallel.mesh import make_mesh
from moe.training import setup
from moe.training.experiment import load_config
from moe.training.setup import Setup, check_memory
from moe.training.trainer import train
from tests.training.tiny import changed, tiny_mapping


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("model.d_model", 10**9),
    ("model.d_ff", 2**31 - 1),
    ("model.vocab_size", 2**31 - 1),
    ("model.encoder.moe.d_ff", 2**31 - 1),
    ("model.encoder.moe.shared_experts", 2**31 - 1),
    ("data.batch_size", 2**31 - 4),
    ("data.inputs_length", 10**8),
    ("data.targets_length", 10**8),
    ("model.decoder.depth.predictor_width", 2**31 - 1),
  ],
)
def test_absurd_sizes_are_refused_by_name_before_anything_is_allocated(corpus, tmp_path, monkeypatch, path, value):
  monkeypatch.setattr(setup, "device_memory", lambda mesh: 16 * memory.GIB)
  mapping = tiny_mapping(corpus)
  if "depth" in path:
    mapping = override(mapping, [("model.decoder.depth", {}), ("model.allow_future_leakage", True)])
  with pytest.raises(ConfigError) as error:
    train(load_config(override(mapping, [(path, value)])), tmp_path / "run")
  assert str(error.value).startswith(f"config.{path} = {value}: expected at most about ")
  assert "GiB" in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_the_bound_is_what_the_state_and_the_gradients_take(corpus, monkeypatch):
  """19,376 float32 parameters twice, and at most as much for Adafactor's statistics: a byte less is refused."""
  config, mesh = load_config(changed(corpus, "seed", 3)), make_mesh()
  abstract = Setup(config, mesh).abstract
  needed = memory.shard_bytes(abstract) + 4 * 19_376
  assert 8 * 19_376 < needed < 13 * 19_376
  monkeypatch.setattr(setup, "device_memory", lambda mesh: needed)
  check_memory(load_config(changed(corpus, "data.batch_size", 1)), mesh, abstract)
  monkeypatch.setattr(setup, "device_memory", lambda mesh: needed - 1)
  with pytest.raises(ConfigError, match=r"with all else as it is: parameters, gradients and optimizer state need"):
    check_memory(config, mesh, abstract)


def test_what_would_fit_fits(corpus, monkeypatch):
  monkeypatch.setattr(setup, "device_memory", lambda mesh: 16 * memory.GIB)
  with pytest.raises(ConfigError) as error:
    check_memory(load_config(changed(corpus, "model.d_model", 10**7)), make_mesh())
  fitting = int(str(error.value).split("at most about ")[1].split(" ")[0])
  check_memory(load_config(changed(corpus, "model.d_model", fitting)), make_mesh())


def test_a_container_has_what_it_is_allowed(tmp_path, monkeypatch):
  (tmp_path / "limit").write_text("4096000\n")
  (tmp_path / "none").write_text("max\n")
  monkeypatch.setattr(memory, "_CGROUP_LIMITS", [str(tmp_path / name) for name in ("none", "limit", "missing")])
  assert memory.host_memory() == 4_096_000
