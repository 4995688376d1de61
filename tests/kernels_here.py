"""Kernels of attention as a CPU can run them: in an interpreter, or in another form of the same."""

import importlib.util

import jax.numpy as jnp
import numpy as np

from sapt_jax.backbones.attention import asked, backward, cudnn, splash, tokamax


def library_stand_in(form, q, k, v, bias, start, end, keys):
  """What tokamax's forward pass gives, written plainly."""
  dtype, (q, k, v) = q.dtype, (x.astype(jnp.float32) for x in (q, k, v))
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  scores = form.scale * jnp.einsum("blhk,bshk->bhls", q, k)
  scores = scores if bias is None else scores + bias
  place, own = np.arange(k.shape[1]), np.arange(q.shape[1])[:, None]
  seen = jnp.asarray(place <= own if form.causal else place <= k.shape[1])
  seen = seen if start is None else seen & (start[:, None, :, None] <= place)
  seen = seen if end is None else seen & (place < end[:, None, :, None])
  seen = seen if keys is None else seen & keys[:, None, None]
  scores = jnp.where(seen, scores, -jnp.inf)
  greatest = jnp.max(scores, axis=-1)
  e = jnp.exp(scores - greatest[..., None])
  total = jnp.sum(e, axis=-1)
  y = jnp.einsum("bhls,bshk->blhk", e / total[..., None], v)
  return y.astype(dtype), greatest, total


def put_here(monkeypatch):
  """Has kernels run as a CPU can, in float32."""
  monkeypatch.setattr(backward, "INTERPRET", True)
  monkeypatch.setattr(splash, "INTERPRET", True)
  monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
  monkeypatch.setattr(tokamax, "KERNEL", "xla")
  monkeypatch.setattr(asked, "needs_halves", lambda what: None)
  monkeypatch.setattr(asked, "needs_library", lambda *what: None)
  if importlib.util.find_spec("tokamax") is None:
    monkeypatch.setattr(tokamax, "_library", library_stand_in)
