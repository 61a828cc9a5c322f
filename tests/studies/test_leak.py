"""What the study `leak` measures of a decoder."""

import pytest

from moe.studies.claims.leak import perturbed
from tests.models.tiny import batch, router
from tests.report.test_decoder_leaks import trained


@pytest.mark.parametrize(
  ("name", "options", "future", "company"),
  [("expert_choice", {"group_size": 8}, True, False), ("expert_choice", {}, True, True), ("glam", {}, False, False)],
)
def test_later_tokens_and_other_rows_change_the_outputs_that_share_a_pool_with_them(
  tmp_path, name, options, future, company
):
  found = perturbed(trained(tmp_path, router(name, **options)), batch(rows=4, targets=8))
  assert (found["future"] > 0, found["company"] > 0) == (future, company)
