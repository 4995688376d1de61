"""SuperNI, order 2, on LLaMA-2 7B, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/superni_2_llama2_7b.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 2, "llama2_7b")
