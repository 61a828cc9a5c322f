"""Claims about gates and single layers, each tried by small experiments without the trainer."""

from moe.studies.claims.experiments import movielens as movielens
from moe.studies.claims.experiments import recovery as recovery
