"""The embedded default run: SAPT-LoRA on the mini stream, with a budget of minutes on two cores.

So short a budget needs the routed form of the attention (SaptOptions.attention); the published
one is a word away: --method.attention published. New blocks read what earlier ones read
(Pet.new_block), which is what transfers between tasks here.
"""

from sapt_jax.config import Backbone, Config, Data, Evaluation, Fit, Generator, Pet
from sapt_jax.methods.sapt import SaptOptions

config = Config(
  method=SaptOptions(attention="routed", attention_learning_rate=1e-4),
  pet=Pet(new_block="directions"),
  fit=Fit(steps=100, batch_size=16, learning_rate=3e-3),
  generator=Generator(
    steps=100,
    batch_size=16,
    learning_rate=6e-3,
    keep=0.08,
    oversample=2.0,
    max_length=96,
    repetition_penalty=1.0,
  ),
  data=Data(benchmark="mini", max_source_length=128, max_target_length=16),
  backbone=Backbone(path="t5-mini"),
  evaluation=Evaluation(batch_size=64),
)
