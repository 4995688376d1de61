"""What a backbone is given besides its frozen weights."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax


class Adapters(flax.struct.PyTreeNode):
  """PET blocks as a backbone applies them to one batch;
  None in a field means that there are none of that kind.

  Attributes:
    lora: nested like the backbone's sites, {"a": (layers, D_in, T, R), "b": (layers, T, R, D_out)}
      at each; where there is a newest block, also {"newest_a": (layers, D_in, R), "newest_b":
      (layers, R, D_out)}, through which it gets its gradient.
    gates: (B, T) float32, the weight of each LoRA block for each example: mixture * alpha / r;
      (B, K) where K blocks are chosen.
    chosen: (B, K) int32, which LoRA blocks each example uses; None: all.
    newest: () int32, the one LoRA block that is being learned; None: gradients reach all.
    prompts: (B, P, D), a soft prompt per example that is put before its input embeddings.
    prompts_mask: (B, P) bool, which places of `prompts` are there; None: all.
    detached: (T,) bool, LoRA blocks that pass no gradient on to the hidden states (see
      lora.mixed_product).
    dropout: of what enters the LoRA blocks while they are learned.
  """

  lora: Any = None
  gates: jax.Array | None = None
  chosen: jax.Array | None = None
  newest: jax.Array | None = None
  prompts: jax.Array | None = None
  prompts_mask: jax.Array | None = None
  detached: jax.Array | None = None
  dropout: float = flax.struct.field(pytree_node=False, default=0.0)

  def of_rows(self) -> dict[str, jax.Array]:
    """The fields that have an entry for each example, those that are there."""
    fields = ("gates", "chosen", "prompts", "prompts_mask")
    return {name: x for name in fields if (x := getattr(self, name)) is not None}
