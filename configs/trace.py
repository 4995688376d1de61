"""TRACE's eight tasks in its order (Wang et al., 2023, arXiv 2310.06762), on its Llama-2-7B-chat,
with the lengths, epochs, batch and rate of its LoRA script; the rank is ours, and the rate is
constant, not cosine.

    python -m sapt_jax.train --config configs/trace.py --data.root TRACE_FOLDER --output runs/trace

TRACE_FOLDER holds TASK/{train,eval,test}.json. 20Minuten is scored by Rouge-L, where TRACE takes
SARI.
"""

from sapt_jax.config import Backbone, Config, Data, Evaluation, Fit, Pet, Stream
from sapt_jax.methods.sapt import SaptOptions

EPOCHS = {
  "C-STANCE": 5,
  "FOMC": 3,
  "MeetingBank": 7,
  "Py150": 5,
  "ScienceQA": 3,
  "NumGLUE-cm": 5,
  "NumGLUE-ds": 5,
  "20Minuten": 7,
}

config = Config(
  method=SaptOptions(),
  pet=Pet(rank=8),
  fit=Fit(epochs=5, batch_size=32, accumulation=8, learning_rate=1e-4),
  stream=Stream(
    tasks=tuple(EPOCHS), fit=tuple(f"{task}:epochs={n}" for task, n in EPOCHS.items() if n != 5)
  ),
  data=Data(benchmark="trace", root="TRACE", max_source_length=1024, max_target_length=512),
  backbone=Backbone(path="meta-llama/Llama-2-7b-chat-hf", dtype="bfloat16", remat="full"),
  evaluation=Evaluation(batch_size=16),
)
