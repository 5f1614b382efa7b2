"""ε-ResNet: residual blocks that become strict identities (Yu, Yu, Ramalingam, CVPR 2018, arXiv 1804.01661).

The method is not written yet: this distribution holds its name and version, nothing else.
"""

__version__ = "0.1.0"
