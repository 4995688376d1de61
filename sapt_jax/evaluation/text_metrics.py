"""Scores of one answer against its acceptable references, 0-100."""

from __future__ import annotations

import collections
import difflib
import functools
import math
import numbers
import re
import runpy
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sapt_jax.errors import InputError

# Scripts that put no spaces between words, so that every character is a token, as the Unicode names
# of their characters begin.
UNSPACED = tuple(
  "CJK |IDEOGRAPHIC |HIRAGANA |KATAKANA|THAI |LAO |KHMER |MYANMAR |TIBETAN ".split("|")
)
# Marks that writers of Arabic and Hebrew may leave out, and Arabic's stretching stroke.
OPTIONAL_MARKS = re.compile(
  "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
  "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]"
)


@functools.lru_cache(maxsize=65536)
def kind(character: str) -> str:
  """What a character is: part of a "word", a token "alone", a "mark" on what stands before,
  "ignored", or a "gap".
  """
  category = unicodedata.category(character)
  if category == "Cf":  # joiners, direction marks, soft hyphens
    return "ignored"
  if category[0] == "M":
    return "mark"
  if category[0] not in "LN":
    return "gap"
  return "alone" if unicodedata.name(character, "").startswith(UNSPACED) else "word"


class MultilingualTokenizer:
  """Words of any script, for rouge-score, whose own tokeniser keeps only a-z and 0-9
  and so scores Chinese answers 0.

  Text is compatibility-composed (NFKC) and case-folded; Arabic and Hebrew lose the marks that are
  optional in writing. Letters and digits with their combining marks form words, everything else
  separates them. In scripts without spaces (Chinese, Japanese, Thai, ...) each character is a
  token. Words of a-z and 0-9 are stemmed as rouge-score does: on ASCII text the two tokenisers
  agree.
  """

  def __init__(self) -> None:
    from rouge_score import tokenizers  # here, as it takes a second, which most metrics need not

    self.stemmer = tokenizers.DefaultTokenizer(use_stemmer=True)

  def tokenize(self, text: str) -> list[str]:
    """The tokens of a text, in order."""
    tokens: list[str] = []
    before = "gap"
    for character in OPTIONAL_MARKS.sub("", unicodedata.normalize("NFKC", text).casefold()):
      now = kind(character)
      if now == "ignored" or (now == "mark" and before == "gap"):
        continue
      if now == "mark" or (now == before == "word"):
        tokens[-1] += character
        continue  # a mark does not end the word it stands in
      if now != "gap":
        tokens.append(character)
      before = now
    return [self.stemmer.tokenize(token)[0] if token.isascii() else token for token in tokens]


@functools.cache
def _rouge_scorer(tokenizer: Callable[[], Any]) -> Any:
  from rouge_score import rouge_scorer  # here, as above

  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=tokenizer())


def rouge_l(prediction: str, reference: str, tokenizer: Callable[[], Any] = lambda: None) -> float:
  """The f-measure of their longest common subsequence, 0-100, of rouge-score's tokens if no
  tokenizer is given.
  """
  scored = _rouge_scorer(tokenizer).score(target=reference, prediction=prediction)
  return 100 * scored["rougeL"].fmeasure


def normalised(text: str) -> str:
  """Lower case, without ASCII punctuation, single spaces:
  the form in which the public scorer compares answers.
  """
  return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def exact_match(prediction: str, reference: str) -> float:
  """100 if both are the same in normalised form, else 0.

  A reference of which that form leaves nothing, such as "-", is compared as it is written: an
  empty answer is not the same.
  """
  if not normalised(reference):
    return 100.0 * (prediction.strip() == reference.strip())
  return 100.0 * (normalised(prediction) == normalised(reference))


def token_f1(prediction: str, reference: str) -> float:
  """How far the words of both are the same, as SQuAD counts it, without a, an and the: the harmonic
  mean of the shares of the prediction's words that are in the reference, and of the reference's
  that are in it.
  """
  words, wanted = (
    [word for word in normalised(text).split() if word not in ("a", "an", "the")]
    for text in (prediction, reference)
  )
  if not words or not wanted:
    return exact_match(prediction, reference)
  shared = sum((collections.Counter(words) & collections.Counter(wanted)).values())
  return 200.0 * shared / (len(words) + len(wanted))


def edit_similarity(prediction: str, reference: str) -> float:
  """Twice the characters that both have in common, in blocks in the same order, over all characters
  (Ratcliff and Obershelp; TRACE's score for Py150).
  """
  matcher = difflib.SequenceMatcher(None, prediction.strip(), reference.strip(), autojunk=False)
  return 100.0 * matcher.ratio()


METRICS: dict[str, Callable[[str, str], float]] = {
  "rouge_l": rouge_l,
  "rouge_l_multilingual": functools.partial(rouge_l, tokenizer=MultilingualTokenizer),
  "exact_match": exact_match,
  "token_f1": token_f1,
  "edit_similarity": edit_similarity,
}


def score(metric: str, prediction: str, references: Sequence[str]) -> float:
  """The best score of a prediction over its references.

  Args:
    metric: "rouge_l" (rouge-score with its stemmer), "rouge_l_multilingual" (tokens of any script),
      "exact_match", "token_f1" or "edit_similarity".
    references: at least one acceptable answer.

  Returns:
    0-100.
  """
  return max(METRICS[metric](prediction, reference) for reference in references)


def named_label(prediction: str, labels: Iterable[str]) -> str | None:
  """The label that an answer names: the one that it is; else the only one whose words stand in it
  one after another, a label within a longer one that is named too not counted; None: there is none,
  or there are several.

  Words are compared in normalised form. A label that has the form of another, or none ("+" and "-",
  "C" and "C++"), has to be written as it is; upper and lower case are one.
  """
  written = {plain(label): label for label in labels}
  if plain(prediction) in written:
    return written[plain(prediction)]
  forms: dict[str, list[str]] = {}
  for label in written.values():
    forms.setdefault(normalised(label), []).append(label)
  clear = {form: found[0] for form, found in forms.items() if form and len(found) == 1}
  said = f" {normalised(prediction)} "
  named = [form for form in clear if f" {form} " in said]
  longest = [form for form in named if not any(form != other and form in other for other in named)]
  return clear[longest[0]] if len(longest) == 1 else None


def plain(text: str) -> str:
  """A text in lower case, with single spaces."""
  return " ".join(text.lower().split())


Scoring = Callable[[str, Sequence[str]], float]  # prediction, references -> 0-100


def scoring_of(metric: str, labels: Iterable[str] = ()) -> Scoring:
  """How a prediction is scored.

  Args:
    metric: see score; "accuracy": whether the label that the prediction names is a reference; or
      FILE.py:FUNCTION.
    labels: all that there are, for accuracy.

  Raises:
    InputError: no such file or function.
  """
  if metric == "accuracy":
    known = list(dict.fromkeys(labels))

    def accuracy(prediction: str, references: Sequence[str]) -> float:
      label = named_label(prediction, known)
      return 100.0 * (label is not None and plain(label) in map(plain, references))

    return accuracy
  if metric in METRICS:
    return lambda prediction, references: score(metric, prediction, references)
  return _own_function(metric)


def _own_function(metric: str) -> Scoring:
  file, _, name = metric.rpartition(":")
  try:
    found = runpy.run_path(file)
  except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a user's file raises)
    raise InputError(f"metric {metric}: {type(error).__name__}: {error}") from None
  function = found.get(name)
  if not callable(function):
    raise InputError(f"metric {metric}: {file} has no function {name}")

  def own(prediction: str, references: Sequence[str]) -> float:
    try:
      value = function(prediction, list(references))
    except Exception as error:  # noqa: BLE001 (as above)
      raise InputError(
        f"metric {metric}: {type(error).__name__}: {error}, of the answer {prediction!r:.60}"
      ) from None
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if isinstance(value, bool) or not 0 <= number <= 100:
      raise InputError(f"metric {metric}: gave {value!r}; it must give a number from 0 to 100")
    return number

  return own
