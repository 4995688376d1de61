"""Ablation on SuperNI, order 1, T5-Large: without shared attention: all blocks alike, in learning
and answering.

python -m sapt_jax.train --config configs/paper/ablation_uniform.py --data.root CL_BENCHMARK_FOLDER
"""

import dataclasses

from sapt_jax.paper import paper

whole = paper("superni", 1, "t5_large")
config = dataclasses.replace(whole, method=dataclasses.replace(whole.method, uniform="always"))
