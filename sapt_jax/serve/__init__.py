"""A run that answers over HTTP: `python -m sapt_jax.serve`."""
