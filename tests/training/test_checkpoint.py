import contextlib
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.parallel.mesh import make_mesh, replicated
from moe.training.checkpoint import CheckpointError, Checkpoints, NonFiniteError
from moe.training.optimization.optimizer import Adafactor
from moe.training.state import TrainState
from tests.slow import slow

NAN = float("nan")
ABOUT = {"config": {"seed": 1}, "vocabulary": {"size": 7}}


def make_state(step, value=1.0):
  """A state with everything that a real one has: dicts with integer keys, stacked layers, integers, an optimizer."""
  params = {
    "table": jax.random.normal(jax.random.key(0), (300, 300)) * value,
    "decoder": {"units": {"blocks": {0: {"norm": jnp.full((2, 4), value)}, 1: {"bias": jnp.zeros((2, 3))}}}},
  }
  stacked = {"table": 0, "decoder": jax.tree.map(lambda _: 1, params["decoder"])}
  optimizer = Adafactor(weight_decay=0.1).make(stacked)
  opt_state = optimizer.init(params)
  _, opt_state = optimizer.update(jax.tree.map(lambda x: x + step, params), opt_state, params)
  state = TrainState(jnp.asarray(step, jnp.int32), params, {"threshold": jnp.full(4, value)}, opt_state)
  return jax.device_put(state, replicated(make_mesh()))


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(folder, *steps, keep=2):
  """Checkpoints of some steps, each with a state of its own; `(step, criterion)` for one that was validated."""
  checkpoints = Checkpoints(folder, keep)
  for step in steps:
    step, criterion = step if isinstance(step, tuple) else (step, None)
    checkpoints.save(make_state(step, float(step)), {"at": [step, 2]}, ABOUT, criterion)
  checkpoints.close()


def restore(folder, **options):
  """The step and the lines that the user sees; checks that the state is the saved one, bit for bit."""
  checkpoints, lines = Checkpoints(folder, 2, **options), []
  restored = checkpoints.restore(abstract(make_state(0)), lines.append)
  checkpoints.close()
  step = int(restored.state.step)
  jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(step, float(step)))
  assert restored.position == {"at": [step, 2]} and restored.about == ABOUT
  return step, lines


def steps_in(folder):
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
  save(tmp_path / "c", 5)
  assert restore(tmp_path / "c") == (5, [])


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")
  assert checkpoints.restore(abstract(make_state(0)), print) is None
  assert checkpoints.last_good is None


def test_the_newest_and_the_best_are_kept(tmp_path):
  save(tmp_path / "c", (1, 3.0), (2, 1.0), (3, 2.0), 4, 5)
  assert steps_in(tmp_path / "c") == [2, 4, 5]


def test_of_checkpoints_of_equal_criterion_the_last_is_the_best(tmp_path):
  save(tmp_path / "c", (1, -0.5), (2, -0.75), (3, -0.75), (4, NAN), (5, -0.5), 6)
  assert steps_in(tmp_path / "c") == [3, 5, 6]
  assert Checkpoints(tmp_path / "c", read_only=True).best() == 3


def test_the_criterion_of_a_checkpoint_from_before_scores_is_its_loss(tmp_path):
  save(tmp_path / "c", (1, 3.0), (2, 1.0), (3, 2.0), keep=3)
  for step in steps_in(tmp_path / "c"):
    path = tmp_path / "c" / str(step) / "run" / "metadata"
    path.write_text(path.read_text().replace('"criterion"', '"loss"'))
  assert Checkpoints(tmp_path / "c", read_only=True).best() == 2
  assert restore(tmp_path / "c") == (3, [])
  assert Checkpoints(tmp_path / "c", read_only=True).best() == 2


@pytest.mark.parametrize(
  ("losses", "best"), [((NAN, 2.0, 3.0), 2), ((2.0, NAN, 3.0), 1), ((3.0, 2.0, NAN), 2), ((NAN, NAN), None)]
)
def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path, losses, best):
  save(tmp_path / "c", *enumerate(losses, 1), keep=1)
  assert steps_in(tmp_path / "c") == sorted({best or len(losses), len(losses)})
  assert Checkpoints(tmp_path / "c", read_only=True).best() == best


def test_the_best_stays_the_best_after_resuming(tmp_path):
  save(tmp_path / "c", (1, 1.0), (2, 3.0))
  save(tmp_path / "c", (3, 2.0), (4, 2.5), (5, 2.5))
  assert steps_in(tmp_path / "c") == [1, 4, 5]


def test_a_step_is_saved_once_and_never_overwritten(tmp_path):
  save(tmp_path / "c", 3)
  checkpoints = Checkpoints(tmp_path / "c")
  assert not checkpoints.save(make_state(3, 99.0), {}, ABOUT)
  checkpoints.close()
  assert restore(tmp_path / "c")[0] == 3


def files_of(folder):
  return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def remove(path):
  path.unlink()


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, truncate, flip_a_bit])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_previous_one_is_used(tmp_path, damage):
  folder = tmp_path / "c"
  save(folder, 1, 2)
  damage(files_of(folder / "2")[-1])
  step, (line,) = restore(folder)
  assert step == 1
  assert line.startswith("checkpoint 2 is damaged (") and "resuming from step 1" in line and "\n" not in line
  assert files_of(folder / "damaged-2") and steps_in(folder) == [1]


@pytest.mark.parametrize("damage", [slow(remove), truncate])
def test_damage_to_any_one_file_is_survived(tmp_path, damage):
  """Each file in turn: either it held nothing that matters, or the previous checkpoint is used."""
  save(tmp_path / "whole", 1, 2)
  names = [path.relative_to(tmp_path / "whole") for path in files_of(tmp_path / "whole" / "2")]
  for number, name in enumerate(names):
    folder = copy(tmp_path / "whole", tmp_path / str(number))
    damage(folder / name)
    assert restore(folder)[0] in (1, 2)


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  for path in source.rglob("*"):
    if path.is_file():
      copied = target / path.relative_to(source)
      copied.parent.mkdir(parents=True, exist_ok=True)
      copied.write_bytes(path.read_bytes())
  return target


def test_if_no_checkpoint_can_be_read_all_are_left_unchanged(tmp_path):
  save(tmp_path, 1, 2)
  for step in (1, 2):
    remove(files_of(tmp_path / str(step))[-1])
  with pytest.raises(CheckpointError, match=r"no checkpoint under .* can be read; the newest, step 2: "):
    restore(tmp_path)
  assert steps_in(tmp_path) == [1, 2]


def test_a_damaged_step_can_be_saved_again(tmp_path):
  save(tmp_path, 1, 2)
  remove(files_of(tmp_path / "2")[-1])
  checkpoints = Checkpoints(tmp_path, 2)
  checkpoints.restore(abstract(make_state(0)), lambda line: None)
  assert checkpoints.save(make_state(2, 2.0), {"at": [2, 2]}, ABOUT)
  checkpoints.close()
  assert restore(tmp_path) == (2, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, bad):
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(NonFiniteError, match="step 4"):
    checkpoints.save(make_state(4, bad), {}, ABOUT)
  checkpoints.close()
  assert steps_in(tmp_path) == []


@contextlib.contextmanager
def full_disk(room):
  """Within, no file can grow beyond `room` bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50_000])
def test_a_full_disk_is_reported_and_the_last_good_checkpoint_stays(tmp_path, room):
  checkpoints = Checkpoints(tmp_path, keep=1)
  checkpoints.save(make_state(1), {"at": [1, 2]}, ABOUT)
  checkpoints.wait()
  with full_disk(room):
    with pytest.raises(CheckpointError) as error:
      checkpoints.save(make_state(2, 2.0), {}, ABOUT)
      checkpoints.wait()
    checkpoints.close()
  assert "checkpoint 2 could not be written (" in str(error.value) and "File too large" in str(error.value)
  assert f"the last good checkpoint is {tmp_path / '1'}" in str(error.value) and "\n" not in str(error.value)
  assert restore(tmp_path, read_only=True) == (1, [])


def test_evaluation_reads_only_the_model(tmp_path):
  save(tmp_path, 3)
  checkpoints = Checkpoints(tmp_path, read_only=True)
  state = make_state(3, 3.0)
  params, router_state, about = checkpoints.restore_model(3, abstract(state.params), abstract(state.router_state))
  jax.tree.map(np.testing.assert_array_equal, (params, router_state), (state.params, state.router_state))
  assert about == ABOUT
  with pytest.raises(CheckpointError, match=r"step 4 has no checkpoint under .*; there are \[3\]"):
    checkpoints.restore_model(4, abstract(state.params), abstract(state.router_state))
