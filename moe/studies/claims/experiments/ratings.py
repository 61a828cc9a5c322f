"""The ratings of MovieLens-100k, read from the user's own copy: its licence forbids passing it on."""

import dataclasses
import pathlib

import numpy as np

from moe.data.errors import DataError

USERS, FILMS = 943, 1682
_FILE = "u.data"
_COLUMNS = ("user", "film", "rating", "timestamp")
_LARGEST = {"user": USERS, "film": FILMS, "rating": 5}


@dataclasses.dataclass(frozen=True)
class Rows:
  """Pairs of a user and a film.

  Attributes:
    user, film: int32 `[N]`, from 0.
    rating: float32 `[N]`, 1 to 5; 0 for a film that was not watched.
  """

  user: np.ndarray
  film: np.ndarray
  rating: np.ndarray

  def __len__(self) -> int:
    return len(self.user)

  def taken(self, which: np.ndarray) -> "Rows":
    """The rows of these indices."""
    return Rows(self.user[which], self.film[which], self.rating[which])


def read_ratings(folder: str | pathlib.Path) -> Rows:
  """The watched films of `u.data`: tab-separated user, film, rating and timestamp, ids and ratings from 1.

  Raises:
    DataError: there is no such file, a line lacks columns, or an id or a rating is out of range; the line is named.
  """
  path = pathlib.Path(folder) / _FILE
  try:
    lines = path.read_text().splitlines()
  except (OSError, UnicodeDecodeError):
    raise DataError(path, "expected the file of ratings of MovieLens-100k") from None
  if not lines:
    raise DataError(path, "expected lines of ratings, got none")
  rows = np.array([_parsed(path, number, line) for number, line in enumerate(lines, 1)])
  return Rows(rows[:, 0].astype(np.int32) - 1, rows[:, 1].astype(np.int32) - 1, rows[:, 2].astype(np.float32))


def _parsed(path: pathlib.Path, number: int, line: str) -> list[int]:
  """User, film and rating of a line."""
  columns = line.split("\t")
  if len(columns) != len(_COLUMNS):
    raise DataError(f"{path}, line {number}", f"expected the columns {', '.join(_COLUMNS)}, got {len(columns)}")
  values = []
  for (name, largest), text in zip(_LARGEST.items(), columns):
    if not (text.isdecimal() and 1 <= int(text) <= largest):
      raise DataError(f"{path}, line {number}", f"{name} = {text!r}: expected a whole number from 1 to {largest}")
    values.append(int(text))
  return values


def with_unwatched(watched: Rows, seed: int) -> Rows:
  """The watched films, and as many random pairs of which none was watched: the user of each row with other films."""
  draw = np.random.default_rng(seed)
  seen = set(zip(watched.user.tolist(), watched.film.tolist()))
  film = draw.integers(FILMS, size=len(watched)).astype(np.int32)
  while (again := np.array([pair in seen for pair in zip(watched.user.tolist(), film.tolist())])).any():
    film[again] = draw.integers(FILMS, size=int(again.sum()))
  return Rows(
    np.concatenate([watched.user, watched.user]),
    np.concatenate([watched.film, film]),
    np.concatenate([watched.rating, np.zeros(len(film), np.float32)]),
  )


def split(rows: Rows, seed: int) -> tuple[Rows, Rows, Rows]:
  """Rows to train on, to validate and to test with: a tenth for the test, of the rest an eighth for validation."""
  order = np.random.default_rng(seed).permutation(len(rows))
  test = len(rows) // 10
  validation = (len(rows) - test) // 8
  parts = np.split(order, [test, test + validation])
  return rows.taken(parts[2]), rows.taken(parts[1]), rows.taken(parts[0])
