"""Encoders and decoders for common use. Any module with the same calls does as well."""

from .build import ARCHITECTURES, build_networks
from .conv import ConvDecoder, ConvEncoder
from .layers import Log1p
from .mlp import MLPDecoder, MLPEncoder
from .resnet import ResNetDecoder, ResNetEncoder
from .sequence import GRUDecoder, GRUEncoder

__all__ = [
    "ARCHITECTURES",
    "ConvDecoder",
    "ConvEncoder",
    "GRUDecoder",
    "GRUEncoder",
    "Log1p",
    "MLPDecoder",
    "MLPEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "build_networks",
]
