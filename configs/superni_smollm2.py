"""Four short SuperNI tasks on SmolLM2-135M, with a budget that a laptop can pay: 60 steps of 8 per
task.

    python -m sapt_jax.train --config configs/superni_smollm2.py --backbone.path SMOLLM2_FOLDER
    --data.root CL_BENCHMARK_FOLDER

Add --method.name sequential, per_task, or --method.attention published, and another --output, to
compare. Results: docs/results.md.
"""

from sapt_jax.config import Backbone, Config, Data, Evaluation, Fit, Generator, Pet, Stream
from sapt_jax.methods.sapt import SaptOptions

config = Config(
  method=SaptOptions(attention="routed", attention_learning_rate=1e-4),
  pet=Pet(new_block="directions"),
  fit=Fit(steps=60, batch_size=8, learning_rate=1e-3, checkpoint_every=20),
  generator=Generator(
    steps=40,
    batch_size=8,
    learning_rate=2e-3,
    keep=0.05,
    oversample=1.5,
    max_length=256,
    repetition_penalty=1.0,
  ),
  stream=Stream(tasks=("task363", "task1510", "task591", "task875")),
  data=Data(benchmark="superni", root="CL_Benchmark", protocol="clean", max_source_length=256),
  backbone=Backbone(path="SmolLM2-135M-Instruct"),
  evaluation=Evaluation(batch_size=32, metric="exact_match"),
)
