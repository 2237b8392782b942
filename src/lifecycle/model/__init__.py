"""The network, pure torch: its sizes, the decoder, attention kernels, Hugging Face in and out, the sharding plan."""

from lifecycle.model.attention import Documents, best_kernel, check_kernel, count_pieces
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder, build, compile_model

__all__ = [
    "Decoder",
    "Documents",
    "ModelConfig",
    "best_kernel",
    "build",
    "check_kernel",
    "compile_model",
    "count_pieces",
]
