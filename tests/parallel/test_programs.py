"""Runs share programs only if asked to, and only those that are made of the same."""

import dataclasses

from moe.parallel import programs
from moe.parallel.programs import program, shared_programs


@dataclasses.dataclass(frozen=True)
class Config:
  size: int = 1


def test_nothing_is_shared_unless_asked_for(own_programs):
  assert program(("a",), object) is not program(("a",), object)
  with shared_programs():
    assert program(("a",), object) is program(("a",), object)
  assert program(("a",), object) is not program(("a",), object)


def test_equal_keys_share_and_others_do_not():
  with shared_programs():
    first = program(("a", Config()), object)
    assert program(("a", Config()), object) is first
    assert program(("a", Config(2)), object) is not first
    assert program(("b", Config()), object) is not first


def test_configs_of_another_class_are_others_whatever_their_fields():
  """A notebook that runs a cell again defines its router's class again."""

  @dataclasses.dataclass(frozen=True)
  class Again:
    size: int = 1

  Again.__qualname__ = Again.__name__ = "Config"
  assert repr(Again()) == repr(Config())
  with shared_programs():
    assert program(("a", Again()), object) is not program(("a", Config()), object)


def test_the_one_that_was_not_used_for_longest_is_dropped():
  with shared_programs():
    made = [program((number,), object) for number in range(programs._MOST)]
    assert program((0,), object) is made[0]
    program(("one more",), object)
    assert program((0,), object) is made[0]
    assert program((1,), object) is not made[1]
