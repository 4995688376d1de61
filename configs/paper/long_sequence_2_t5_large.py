"""Long Sequence, order 2, on T5-Large, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/long_sequence_2_t5_large.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("long_sequence", 2, "t5_large")
