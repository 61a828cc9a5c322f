"""One published claim per file."""

from moe.studies.claims import balance as balance
from moe.studies.claims import base as base
from moe.studies.claims import capacity as capacity
from moe.studies.claims import capped as capped
from moe.studies.claims import causal as causal
from moe.studies.claims import convergence as convergence
from moe.studies.claims import encoder as encoder
from moe.studies.claims import experiments as experiments
from moe.studies.claims import experts as experts
from moe.studies.claims import hash_layers as hash_layers
from moe.studies.claims import images as images
from moe.studies.claims import leak as leak
from moe.studies.claims import routers as routers
from moe.studies.claims import soft as soft
from moe.studies.claims import tokens as tokens
from moe.studies.claims import transfer as transfer
