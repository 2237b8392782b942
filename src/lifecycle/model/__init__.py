"""The network, pure torch: its sizes, the decoder, attention kernels, Hugging Face in and out, the sharding plan."""

from lifecycle.model.attention import Documents, best_kernel, check_kernel, count_pieces
from lifecycle.model.cache import Cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder, build, compile_model
from lifecycle.model.experts import fixed_shapes
from lifecycle.model.parts import Latent, MoE, RopeScaling

__all__ = [
    "Cache",
    "Decoder",
    "Documents",
    "Latent",
    "MoE",
    "ModelConfig",
    "RopeScaling",
    "best_kernel",
    "build",
    "check_kernel",
    "compile_model",
    "count_pieces",
    "fixed_shapes",
]
