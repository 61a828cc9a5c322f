"""One published claim per file."""

from moe.studies.claims import finetune as finetune
