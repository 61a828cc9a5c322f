"""Studies: each claim that is replicated is one file of `claims`, and its result is another file."""

import moe.studies.claims  # noqa: F401, registers every study
from moe.studies.study import Study as Study
