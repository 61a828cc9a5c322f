"""What the study `tokens` makes of a routing."""

import numpy as np
import pytest

from moe.report.statistics import binomial_null
from moe.studies.claims.tokens import _association, _layer, _signs

TOKENS, EXPERTS = 4000, 8


def layer(chosen, **signs):
  halves = np.split(chosen, 2)
  return _layer(halves, signs, np.arange(len(chosen)) % 10 > 0)


def test_experts_that_choose_at_random_are_as_the_nulls():
  draw = np.random.default_rng(0)
  found = layer(draw.random((TOKENS, EXPERTS)) < 0.25, loss=draw.random(TOKENS))
  assert np.allclose(found["experts"], found["binomial"], atol=0.02)
  assert np.allclose(found["experts"], found["permuted"], atol=0.02)
  assert abs(found["spearman"]["loss"]) < 0.05


def test_experts_that_all_choose_the_hard_tokens_are_not():
  loss = np.random.default_rng(0).random(TOKENS)
  found = layer(np.repeat(loss[:, None] > 0.75, EXPERTS, axis=1), loss=loss)
  assert found["experts"] == pytest.approx([0.75, *[0] * 7, 0.25], abs=0.02)
  assert np.allclose(found["permuted"], found["binomial"], atol=0.02)  # each expert has as many tokens as before
  assert found["spearman"]["loss"] > 0.7
  assert found["difference"]["loss"] == pytest.approx(4, abs=0.2)  # the upper half has 8 at every other token


def test_chance_alone_gives_a_quarter_of_the_papers_tokens_three_or_four_experts():
  null = binomial_null(64, 2)
  assert (sum(null[3:5]), sum(null[5:])) == (pytest.approx(0.27, abs=0.005), pytest.approx(0.05, abs=0.005))


def test_an_association_is_that_of_ranks():
  number = np.array([1, 2, 3, 4])
  assert _association(number, np.array([1.0, 10.0, 100.0, 1000.0])) == (pytest.approx(1), 2)
  assert _association(number, np.array([0.0, 1.0, 0.0, 0.0])) == (
    pytest.approx(-0.2582, abs=1e-4),
    pytest.approx(-2 / 3),
  )
  assert _association(number, np.zeros(4)) == _association(np.full(4, 2), np.arange(4.0)) == (0, 0)


def test_a_piece_inside_a_word_begins_with_a_letter():
  texts = {0: "⟨start⟩", 5: " the", 6: "re", 7: ","}
  found = _signs(np.array([0, 5, 6, 7, 6]), np.zeros(5), texts)
  assert found["continuation"].tolist() == [0, 0, 1, 0, 1]
  assert found["frequency"].tolist() == [0, 0, np.log(2), 0, np.log(2)]
