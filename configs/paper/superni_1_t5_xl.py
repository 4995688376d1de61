"""SuperNI, order 1, on T5-XL, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/superni_1_t5_xl.py --data.root CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("superni", 1, "t5_xl")
