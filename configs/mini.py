"""The embedded default, to start from: ten generated tasks on the model that comes with the
library.

python -m sapt_jax.train --config configs/mini.py
"""

from sapt_jax.mini.default import config

__all__ = ["config"]
