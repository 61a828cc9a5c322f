"""T5 1.1 base with expert choice in the encoder, where it is legal, and causal top-2 in the decoder."""

from configs.pretrain import base


def get_config():
  expert_choice = {"name": "expert_choice", "group_size": 4096}
  return base.encoder_decoder(64, expert_choice, {"name": "glam", "capacity_factor": 2.0})
