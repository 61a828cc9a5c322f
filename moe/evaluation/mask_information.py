"""Leak meter for routers: how much the choice of a token's experts reveals about the next token.

Independent uniform tokens reveal nothing about each other, so whatever the experts of token t reveal about token t + 1
beyond token t and its position, I(mask_t; x_{t+1} | x_t, t), has leaked from the future. It is 0 for a causal router,
trained or not. The perturbation test of `moe.evaluation.leak_meters` finds whether there is a leak; this measures how
much of it a decoder could use, in nats per token.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Masks = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Information:
  """An estimate and its standard error, in nats per token; arrays over the masks' leading axes (scalars if none)."""

  nats: np.ndarray
  standard_error: np.ndarray


def mask_information(
  route: Masks,
  alphabet: Sequence[int],
  batch: int,
  length: int,
  key: jax.Array,
  *,
  batches: int = 16,
  blocks: int = 4,
  experts: Literal["together", "apart"] = "together",
) -> Information:
  """Feeds independent uniform tokens to a router, or to all routers of a model, and estimates what its masks reveal.

  The estimate for freshly drawn, unrelated tokens is subtracted. Without a leak the masks know as little about these as
  about the next tokens, so a causal router reads 0 on average for any number of tokens, while the plain estimator is
  biased if all frequencies are small.

  For a decoder, `route` gives the masks of all its layers, each at the position where its token is read: a decoder that
  reads targets shifted right reads them one position later.

  Args:
    route: from int32 `[B, T]`, token ids, to bool `[..., B, T, E]`, whether an expert takes a token. Deterministic.
    alphabet: the token ids to draw from, at least 2. Few, so that each is often seen with each next id and mask.
    batch: B, sequences of a batch.
    length: T >= 2.
    key: PRNG key of the tokens.
    batches: in each block.
    blocks: number of estimates for the mean and its standard error; at least 2.
    experts: "together": of the whole mask, for few experts, as a leak through masks rarely seen twice is missed.
      "apart": the sum over experts of what each one's choice alone reveals, for any number of experts.
  """
  if len(alphabet) < 2 or length < 2 or blocks < 2:
    raise ValueError(
      f"alphabet of {len(alphabet)} ids, length = {length}, blocks = {blocks}: expected at least 2 of each,"
      " for something to know, a next token to know it of, and a standard error"
    )
  symbols, shape = jnp.asarray(alphabet, jnp.int32), (batches, batch, length)
  estimates = []
  for block_key in jax.random.split(key, blocks):
    drawn, others = (jax.random.randint(k, shape, 0, len(alphabet)) for k in jax.random.split(block_key))
    masks = np.concatenate([np.asarray(route(symbols[index])) for index in drawn], axis=-3)
    tokens, surrogates = (np.asarray(array).reshape(-1, length) for array in (drawn, others))
    values = [
      _told(mask, tokens, tokens, experts) - _told(mask, tokens, surrogates, experts)
      for mask in masks.reshape(-1, *masks.shape[-3:])
    ]
    estimates.append(np.reshape(values, masks.shape[:-3]))
  return Information(np.mean(estimates, axis=0), np.std(estimates, axis=0, ddof=1) / np.sqrt(blocks))


def _told(mask: np.ndarray, tokens: np.ndarray, about: np.ndarray, experts: str) -> float:
  """What masks `[S, T, E]` of tokens `[S, T]` reveal about the next ones of `about` `[S, T]`; ids from 0."""
  known = (np.arange(tokens.shape[1] - 1) * (tokens.max() + 1) + tokens[:, :-1]).ravel()
  following, mask = about[:, 1:].ravel(), mask[:, :-1].reshape(len(known), -1)
  seen = [_numbered(mask)] if experts == "together" else list(mask.T.astype(np.int64))
  return sum(conditional_information(each, following, known) for each in seen)


def _numbered(rows: np.ndarray) -> np.ndarray:
  """Numbers from 0, int `[N]`, the same for equal rows of bool `[N, E]`."""
  packed = np.ascontiguousarray(np.packbits(rows, axis=1))
  return np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)[1]


def conditional_information(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
  """I(a; b | given) in nats, from N joint observations of three discrete variables, int `[N]` from 0.

  A difference of entropies of observed frequencies, each with the correction of Miller and Madow (1955): with K
  occupied bins the entropy of N observations is too small by (K - 1) / 2N. The result may be slightly below 0.
  """
  given_a = given * (a.max() + 1) + a
  given_b = given * (b.max() + 1) + b
  all_three = given_a * (b.max() + 1) + b
  return _entropy(given_a) + _entropy(given_b) - _entropy(all_three) - _entropy(given)


def _entropy(values: np.ndarray) -> float:
  dense = values.max() < 8 * len(values)  # counting is faster than sorting unless values are sparse
  counts = np.bincount(values) if dense else np.unique(values, return_counts=True)[1]
  counts = counts[counts > 0]
  share = counts / len(values)
  return float(-(share * np.log(share)).sum() + (len(counts) - 1) / (2 * len(values)))
