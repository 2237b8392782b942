"""The network, pure torch: its sizes, the decoder, attention kernels, Hugging Face in and out, the sharding plan."""

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder, build, compile_model
from lifecycle.model.layers.attention import DocumentMask, best_kernel, check_kernel, count_pieces
from lifecycle.model.layers.experts import fixed_shapes
from lifecycle.model.layers.kv_cache import Cache
from lifecycle.model.parts import Latent, MoE, RopeScaling

__all__ = [
    "Cache",
    "Decoder",
    "DocumentMask",
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
