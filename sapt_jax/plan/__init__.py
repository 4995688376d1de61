"""What a run would need on hardware that is not here: `python -m sapt_jax.plan`."""
