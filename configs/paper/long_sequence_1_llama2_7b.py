"""Long Sequence, order 1, on LLaMA-2 7B, as in the SAPT paper (sapt_jax/paper.py).

python -m sapt_jax.train --config configs/paper/long_sequence_1_llama2_7b.py --data.root
CL_BENCHMARK_FOLDER
"""

from sapt_jax.paper import paper

config = paper("long_sequence", 1, "llama2_7b")
