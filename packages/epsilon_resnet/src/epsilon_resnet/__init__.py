"""ε-ResNet: residual blocks that become strict identities (Yu, Yu, Ramalingam, CVPR 2018, arXiv 1804.01661)."""

__version__ = "0.1.0"
