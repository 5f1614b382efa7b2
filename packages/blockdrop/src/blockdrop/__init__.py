"""BlockDrop: residual blocks chosen image by image (Wu et al., CVPR 2018, arXiv 1711.08393)."""

__version__ = "0.1.0"
