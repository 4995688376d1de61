"""Replay (experience replay, Chaudhry et al., 2019): one block trained on and on, with real rows of
earlier tasks among each task's own.
"""

from __future__ import annotations

from sapt_jax.methods.sequential import Sequential


class Replay(Sequential):
  """One block for everything, and a fixed draw of every earlier task's rows, question and answer,
  in the training rows.

  SAPT compares with replay of 2 % but ships no code for it; the form here is the union of the
  task's rows with the kept ones, each equally likely. A step costs the same however many tasks
  there are. Stored besides the block: the kept rows, which the loop draws again from the stream's
  files instead of copying them into the snapshot.
  """

  @property
  def rehearsal(self) -> float:
    return self.options.replay_share
