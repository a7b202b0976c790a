"""scalelab: run one model under every data-parallel strategy and see what each step costs."""

__version__ = "0.1.0"
