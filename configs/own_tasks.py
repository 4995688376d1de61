"""Your own tasks (docs/your_own_tasks.md) on a small real model, SmolLM2-135M.

    python -m sapt_jax.train --config configs/own_tasks.py --data.root TASKS
    --backbone.path HuggingFaceTB/SmolLM2-135M-Instruct

A larger model takes the same options: give it more steps, and a lower rate (3e-4 for 7B).
"""

from sapt_jax.config import Backbone, Config, Data, Evaluation, Fit, Generator, Pet
from sapt_jax.methods.sapt import SaptOptions

config = Config(
  method=SaptOptions(attention="routed", attention_learning_rate=1e-4),
  pet=Pet(new_block="directions"),
  fit=Fit(steps=100, batch_size=8, learning_rate=1e-3, decay="cosine", checkpoint_every=50),
  generator=Generator(
    steps=100,
    batch_size=8,
    learning_rate=2e-3,
    keep=0.05,
    oversample=2.0,
    max_length=256,
    repetition_penalty=1.0,
  ),
  data=Data(benchmark="tasks", root="tasks", max_source_length=256),
  backbone=Backbone(path="HuggingFaceTB/SmolLM2-135M-Instruct"),
  evaluation=Evaluation(batch_size=32),
)
