"""One published claim a file."""

from moe.studies.claims import finetune as finetune
