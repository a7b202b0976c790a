"""What can be wrong with a model file."""


class ModelError(ValueError):
    """A model file that does not keep the contract of `contract.py`: a missing function, an option nobody takes,
    a loss that is no scalar."""
