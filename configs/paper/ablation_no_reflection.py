"""Ablation on SuperNI, order 1, T5-Large: without reflection (ARM).

python -m sapt_jax.train --config configs/paper/ablation_no_reflection.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 1, "t5_large", reflection_weight=0.0)
