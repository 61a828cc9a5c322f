"""Claims about runs that begin with what another one has learnt."""

from moe.studies.claims.transfer import finetune as finetune
from moe.studies.claims.transfer import lifelong as lifelong
from moe.studies.claims.transfer import upcycling as upcycling
