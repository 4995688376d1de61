"""SuperNI, order 2, on T5-Large, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/superni_2_t5_large.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 2, "t5_large")
