"""What the ResLess papers share: data, residual networks, runs, checkpoints, weights, costs and reports."""

__version__ = "0.1.0"
