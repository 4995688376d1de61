"""Long Sequence, order 1, on T5-XXL, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/long_sequence_1_t5_xxl.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("long_sequence", 1, "t5_xxl")
