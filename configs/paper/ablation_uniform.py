"""Ablation on SuperNI, order 1, T5-Large: without shared attention: all blocks alike, in learning
and answering.

python -m sapt_jax.train --config configs/paper/ablation_uniform.py --data.root CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 1, "t5_large", uniform="always")
