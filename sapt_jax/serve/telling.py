"""A request's jobs, and what they have to tell put together into answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sapt_jax.errors import InputError
from sapt_jax.serve.openai import Answer, Asked, RefusedError, usage_of
from sapt_jax.serve.queue import Job, News
from sapt_jax.serve.ready import Ready


def jobs_of(asked: Asked, ready: Ready, loop: asyncio.AbstractEventLoop) -> list[Job]:
  """A job for each prompt.

  Raises:
    RefusedError: a prompt has no tokens, or no room beside its definition.
  """
  most = min(asked.most or ready.max_new, ready.max_new)
  field = "messages" if asked.chat else "prompt"
  try:
    rows = [
      ready.row(*pair, field if len(asked.pairs) == 1 else f"prompt[{number}]")
      for number, pair in enumerate(asked.pairs)
    ]
  except InputError as error:
    raise RefusedError(str(error), field) from None
  return [Job(row, ready.padded(row), most, asked.stream, loop) for row in rows]


class Telling:
  """The news of a request's jobs, put together.

  Attributes:
    news: the newest of each job; None: there are none yet.
  """

  def __init__(self, ready: Ready, jobs: list[Job]):
    self.ready, self.jobs = ready, jobs
    self.news: list[News | None] = [None] * len(jobs)

  async def next_of(self, number: int) -> News:
    """Waits for news of a job.

    Raises:
      RefusedError: its batch has failed.
    """
    news = await self.jobs[number].news.get()
    if isinstance(news, Exception):
      raise RefusedError("the batch has failed; the server's log has more", status=500)
    self.news[number] = news
    return news

  async def first(self) -> None:
    """Waits for the first news of the first job."""
    await self.next_of(0)

  async def rest(self) -> None:
    """Waits until all answers are whole."""
    for number in range(len(self.jobs)):
      while not (await self.next_of(number)).whole:
        pass

  @property
  def snapshot(self) -> str:
    """What answers."""
    return next(news.snapshot for news in self.news if news)

  def answers(self) -> list[Answer]:
    """All answers, once they are whole."""
    return [
      Answer(self.ready.text(news.ids), finish_of(news), news.mixture) for news in self.news if news
    ]

  async def parts(self) -> AsyncIterator[tuple[int, Answer]]:
    """(job's number, what is new of its answer), one job after another: news of the later ones wait
    for their turn. The first part of a job has its mixture.
    """
    for number in range(len(self.jobs)):
      sent, news = "", self.news[number] or await self.next_of(number)
      mixture: dict[str, float] | None = news.mixture
      while True:
        written = self.ready.text(news.ids)
        # A letter of several tokens may be there in part; later news have it whole.
        steady = written.startswith(sent) and (news.whole or not written.endswith("\ufffd"))
        new = written[len(sent) :] if steady else ""
        if new or news.whole or mixture is not None:
          yield number, Answer(new, finish_of(news), mixture)
        sent, mixture = sent + new, None
        if news.whole:
          break
        news = await self.next_of(number)

  def usage(self) -> dict[str, int]:
    """Counts of tokens, as far as they are told."""
    read = sum(len(job.row.source) for job in self.jobs)
    return usage_of(read, sum(len(news.ids) for news in self.news if news))

  def leave(self) -> None:
    """Nobody waits for the answers any more."""
    for job in self.jobs:
      job.left = True


def finish_of(news: News) -> str | None:
  """OpenAI's word for why an answer has ended; None: it goes on."""
  return None if not news.whole else "stop" if news.ended else "length"
