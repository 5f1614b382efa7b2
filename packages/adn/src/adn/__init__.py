"""ADN: adaptive depth networks with skippable sub-paths (Kang and Lee, NeurIPS 2024, arXiv 2312.16392).

The method is not written yet: this distribution holds its name and version, nothing else.
"""

__version__ = "0.1.0"
