"""How often loops run, from their text and from programs that XLA compiled."""

import jax
import jax.numpy as jnp
import pytest

from moe.planning import hlo
from moe.planning.loops import Scope, trip_count


def one_loop(start="0", step="1", limit="7", direction="LT", attributes=""):
  """A counting loop as the TPU compiler writes it."""
  return f"""
%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %state = (s32[], f32[4]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %copied = s32[] copy(%count)
  %step = s32[] constant({step})
  %next = s32[] add(%step, %copied)
  %x = f32[4] get-tuple-element(%state), index=1
  ROOT %new = (s32[], f32[4]) tuple(%next, %x)
}}

%condition (state.1: (s32[], f32[4])) -> pred[] {{
  %state.1 = (s32[], f32[4]) parameter(0)
  %count.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant({limit})
  ROOT %test = pred[] compare(%count.1, %limit), direction={direction}
}}

ENTRY %main (x.1: f32[4]) -> (s32[], f32[4]) {{
  %x.1 = f32[4] parameter(0)
  %start = s32[] constant({start})
  %first = (s32[], f32[4]) tuple(%start, %x.1)
  ROOT %loop = (s32[], f32[4]) while(%first), condition=%condition, body=%body{attributes}
}}
"""


def trips(text):
  module = hlo.parse(text)
  return trip_count(module.entry.root, Scope(module, module.entry))


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, 7),
    ({"start": "3"}, 4),
    ({"step": "2"}, 4),
    ({"limit": "0"}, 0),
    ({"direction": "NE"}, None),
    ({"step": "0"}, None),
    ({"attributes": ', backend_config={"known_trip_count":{"n":"12"}}'}, 12),
  ],
)
def test_a_counter_from_a_constant_to_a_constant(changes, expected):
  assert trips(one_loop(**changes)) == expected


def test_a_limit_that_depends_on_data_is_unknown():
  text = one_loop().replace("%limit = s32[] constant(7)", "%limit = s32[] get-tuple-element(%state.1), index=1")
  assert trips(text) is None


def test_a_counter_whose_start_depends_on_data_is_unknown():
  assert trips(one_loop().replace("%start = s32[] constant(0)", "%start = s32[] bitcast(%x.1)")) is None


def test_a_limit_may_be_passed_down_through_an_outer_loop():
  """The compiler moves constants out of loops, into their carry."""
  text = """
%inner_body (s: (s32[], s32[])) -> (s32[], s32[]) {
  %s = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(1)
  %more = s32[] add(%i, %one)
  %kept = s32[] get-tuple-element(%s), index=1
  ROOT %r = (s32[], s32[]) tuple(%more, %kept)
}

%inner_condition (s.1: (s32[], s32[])) -> pred[] {
  %s.1 = (s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] get-tuple-element(%s.1), index=1
  ROOT %c = pred[] compare(%limit, %i.1), direction=GT
}

%outer_body (t: (s32[], s32[])) -> (s32[], s32[]) {
  %t = (s32[], s32[]) parameter(0)
  %zero = s32[] constant(0)
  %bound = s32[] get-tuple-element(%t), index=1
  %into = (s32[], s32[]) tuple(%zero, %bound)
  %inner = (s32[], s32[]) while(%into), condition=%inner_condition, body=%inner_body
  %j = s32[] get-tuple-element(%t), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%j, %two)
  ROOT %r.1 = (s32[], s32[]) tuple(%next, BOUND)
}

%outer_condition (t.1: (s32[], s32[])) -> pred[] {
  %t.1 = (s32[], s32[]) parameter(0)
  %j.1 = s32[] get-tuple-element(%t.1), index=0
  %ten = s32[] constant(10)
  ROOT %c.1 = pred[] compare(%j.1, %ten), direction=LT
}

ENTRY %main () -> (s32[], s32[]) {
  %start = s32[] constant(0)
  %five = s32[] constant(5)
  %first = (s32[], s32[]) tuple(%start, %five)
  ROOT %loop = (s32[], s32[]) while(%first), condition=%outer_condition, body=%outer_body
}
"""

  def inner_trips(bound):
    module = hlo.parse(text.replace("BOUND", bound))
    scope = Scope(module, module.entry)
    assert trip_count(module.entry.root, scope) == 5
    body = scope.inside(module.entry.root, "outer_body")
    return trip_count(body.computation.instructions["inner"], body)

  assert inner_trips("%bound") == 5
  # A bound that changes between trips is no constant.
  assert inner_trips("%j") is None


@pytest.mark.parametrize("optimized", [False, True])
def test_loops_of_compiled_programs(optimized):
  def f(x):
    counted = jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=9)[0]
    return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x * 2, counted)

  lowered = jax.jit(f).lower(jnp.ones(8))
  module = hlo.parse(lowered.compile().as_text() if optimized else lowered.as_text("hlo"))
  scopes = [(Scope(module, c), i) for c in module.computations.values() for i in c.instructions.values()]
  found = [trip_count(i, scope) for scope, i in scopes if i.opcode == "while"]
  assert sorted(found, key=str) == [9, None]
