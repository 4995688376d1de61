"""SAPT in JAX: parameter-efficient continual learning of language models."""

__version__ = "0.1.0"
