"""What local experts learn: vowels from two formants, and a line with a jump."""

from typing import Any, NamedTuple

import numpy as np

# F1 and F2 of [i], [I], [a] and [A] (heed, hid, hod, hud): means and standard deviations in Hz, and the correlation.
# Means are those of Peterson and Barney 1952, J. Acoust. Soc. Am. 24, table II; all else is computed from the 1,520
# recordings as Watrous 1991, J. Acoust. Soc. Am. 89, published them, over the speakers of a group and both repetitions.
FORMANTS = {
  "men": (
    (270, 2290, 37, 136, 0.02),
    (390, 1990, 50, 126, -0.16),
    (730, 1090, 54, 97, 0.68),
    (640, 1190, 47, 109, 0.01),
  ),
  "women": (
    (310, 2790, 47, 132, -0.07),
    (430, 2480, 47, 151, 0.05),
    (850, 1220, 95, 99, 0.57),
    (760, 1400, 68, 119, 0.28),
  ),
  "children": (
    (370, 3200, 70, 219, 0.08),
    (530, 2730, 74, 207, 0.27),
    (1030, 1370, 128, 163, 0.56),
    (850, 1590, 118, 103, 0.37),
  ),
}
_SPEAKERS = {"men": 33, "women": 28, "children": 14}
_TRAINING = 50  # speakers; the others test
_REPETITIONS = 2  # of each vowel
_POINTS = 200  # of the regression, to train and to test


class Cases(NamedTuple):
  """Inputs `[n, k]` and targets `[n, d]`, float32."""

  inputs: Any
  targets: Any


def vowels(seed: int) -> tuple[Cases, Cases]:
  """Standardised formants and one-hot vowels: those of the speakers who train, and of the others."""
  draw, groups = np.random.default_rng(seed), []
  for group, number in _SPEAKERS.items():
    by_vowel = []
    for f1, f2, sd1, sd2, correlation in FORMANTS[group]:
      both = correlation * sd1 * sd2
      size = (number, _REPETITIONS)
      by_vowel.append(draw.multivariate_normal((f1, f2), [[sd1**2, both], [both, sd2**2]], size))
    groups.append(np.stack(by_vowel, axis=1))  # [speakers, vowels, repetitions, 2]
  formants = draw.permutation(np.concatenate(groups)).astype(np.float32)
  vowel = np.broadcast_to(np.eye(4, dtype=np.float32)[:, None], (len(formants), 4, _REPETITIONS, 4))
  train, test = (
    Cases(formants[part].reshape(-1, 2), vowel[part].reshape(-1, 4))
    for part in (slice(0, _TRAINING), slice(_TRAINING, None))
  )
  mean, sd = train.inputs.mean(0), train.inputs.std(0)
  return train._replace(inputs=(train.inputs - mean) / sd), test._replace(inputs=(test.inputs - mean) / sd)


def segments(seed: int) -> tuple[Cases, Cases]:
  """Points of two lines with a jump between them, and noise of variance 1."""
  draw = np.random.default_rng(seed)
  x = draw.uniform(-1, 1, (2, _POINTS, 1))
  y = 5 * np.where(x < 0, x + 1, x - 1) + draw.normal(size=x.shape)
  train, test = (Cases(x[part].astype(np.float32), y[part].astype(np.float32)) for part in range(2))
  return train, test
