"""Claims about gates and single layers, each tried by small experiments without the trainer."""

from moe.studies.claims.experiments import estimators as estimators
from moe.studies.claims.experiments import local_experts as local_experts
from moe.studies.claims.experiments import movielens as movielens
from moe.studies.claims.experiments import recovery as recovery
