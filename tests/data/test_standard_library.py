"""The corpus that needs no download."""

import pathlib
import sysconfig

import pytest

from moe.data import DataError, make_source, make_vocabulary, validation_text
from moe.data.documents import held_out
from tests.data.conftest import make_config

CONFIG = make_config("standard_library")


def texts(split: str) -> list[str]:
  return list(make_source(CONFIG, split, make_vocabulary(CONFIG)).texts(0))


def test_both_splits_are_real_text_and_share_nothing():
  train, validation = texts("train"), texts("validation")
  assert len(train) > 200
  assert sum(map(len, train)) > 4_000_000
  assert 0.01 < len(validation) / len(train) < 0.12
  assert not {text for text in train if text} & {text for text in validation if text}


def test_a_known_module_is_there_unchanged():
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  split = "validation" if held_out("argparse.py", 0, CONFIG.source.validation_fraction) else "train"
  assert (root / "argparse.py").read_bytes().decode() in texts(split)


def test_packages_that_are_not_part_of_the_library_are_excluded():
  everything = "".join(texts("train") + texts("validation"))
  assert pathlib.Path(pytest.__file__).read_text() not in everything


def test_validation_text_is_all_of_the_split():
  assert validation_text(CONFIG) == "".join(texts("validation")).encode()


def test_another_split_is_rejected():
  with pytest.raises(DataError, match="split 'test': expected one of train, validation, the splits of the standard"):
    make_source(CONFIG, "test", make_vocabulary(CONFIG))
