"""Ablation on SuperNI, order 1, T5-Large: learned with the shared attention, answered without it:
all blocks alike.

python -m sapt_jax.train --config configs/paper/ablation_uniform_answering.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 1, "t5_large", uniform="answering")
