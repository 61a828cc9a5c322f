"""Every line of `fields.txt`: a field that is refused, in one line, by its whole name."""

import pathlib

import pytest

from moe.config import ConfigError
from moe.config_file import read_config
from moe.training.experiment import load_config

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs/quickstart.py"
LINES = (pathlib.Path(__file__).parent / "fields.txt").read_text().splitlines()
ROWS = [[part.strip() for part in line.split(" | ")] for line in LINES if not line.startswith("#")]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_field_is_refused_in_one_line(row):
  override, *field, said = row
  with pytest.raises(ConfigError) as caught:
    load_config(read_config([f"--config={QUICKSTART}", f"--config.{override}"]))
  message = str(caught.value)
  assert message.startswith(f"config.{field[0] if field else override.partition('=')[0]} = ")
  assert said in message and "\n" not in message
  assert len(message) < 700


def test_no_line_is_there_twice():
  assert len({row[0] for row in ROWS}) == len(ROWS)
