"""SuperNI, order 2, on LLaMA-2 13B, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/superni_2_llama2_13b.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 2, "llama2_13b")
