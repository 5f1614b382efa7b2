"""DeepHoyer: sparsity regularisers, pruning and compaction (Yang, Wen, Li, ICLR 2020, arXiv 1908.09979)."""

__version__ = "0.1.0"
