"""Markdown tables for documents and the terminal."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """The lines of a table: header, rule and rows."""
  return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(cells)} |" for cells in rows)]


def table_cells(lines: Iterable[str]) -> list[list[str]]:
  """The header and the rows of the tables that `markdown_table` made, among other lines."""
  rows = [line for line in lines if line.startswith("|") and not line.startswith("|---")]
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]
