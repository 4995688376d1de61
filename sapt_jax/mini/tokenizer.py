"""The tokenizer of `t5-mini`: a unigram model with T5's conventions,
counted from the pretraining mixture.

Ids: 0 <pad>, 1 </s>, 2 <unk>; the sentinels <extra_id_0>, <extra_id_1>, ... end the vocabulary in
falling order, as in T5. White space of any kind counts as one space, so that text comes back from
`decode` with single spaces.

The mixture has only some hundred word forms, on which the usual EM training prunes whole words in
favour of letters. So the pieces are chosen by counting instead: every frequent form is one piece,
with its relative frequency as probability; what is left is filled with fragments of those forms,
and single characters make sure that nothing printable is unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1280
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
CHARACTERS = tuple(chr(code) for code in range(33, 127))
# Nats below the rarest whole form, times a fragment's rarity.
FRAGMENT_PENALTY, CHARACTER_PENALTY = 8.0, 12.0


def build_tokenizer(texts: Iterable[str], words: Iterable[str], sentinels: int) -> Tokenizer:
  """Builds a unigram tokenizer of exactly VOCAB_SIZE ids that appends </s>.

  Args:
    texts: what the frequencies of the pieces are counted on.
    words: words that become single pieces even if no text has them.
    sentinels: how many <extra_id_n> end the vocabulary.
  Raises:
    ValueError: if the words alone do not fit into the vocabulary.
  """
  marks = [f"<extra_id_{n}>" for n in range(sentinels)]
  normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
  # A mark that follows a word is a piece of its own, so that "soup:" and "soup" share the word's.
  spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
  mark_after_word = Regex(r"(?<=[A-Za-z0-9])[^A-Za-z0-9▁]+")
  splitter = pre_tokenizers.Sequence(
    [spaces, pre_tokenizers.Split(mark_after_word, behavior="isolated")]
  )
  counts = Counter(
    form for text in texts for form, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
  )
  counts.update({f"▁{word}": 1 for word in words if f"▁{word}" not in counts})
  forms = {form: count for form, count in counts.items() if not any(mark in form for mark in marks)}
  pieces = _pieces(forms, VOCAB_SIZE - sentinels - 3, {f"▁{word}" for word in words})
  tokenizer = Tokenizer(models.Unigram([(PAD, 0.0), (EOS, 0.0), (UNK, 0.0), *pieces], unk_id=2))
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
  tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
  tokenizer.add_special_tokens(
    [AddedToken(token, normalized=False, special=True) for token in (PAD, EOS, UNK)]
  )
  tokenizer.add_special_tokens(
    [AddedToken(mark, normalized=False, special=True, lstrip=True) for mark in reversed(marks)]
  )
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"$A {EOS}",
    pair=f"$A {EOS} $B {EOS}",
    special_tokens=[(EOS, tokenizer.token_to_id(EOS))],
  )
  return tokenizer


def _pieces(forms: dict[str, int], size: int, wanted: set[str]) -> list[tuple[str, float]]:
  """The `size` pieces with their log-probabilities:
  characters, whole forms by frequency, fragments of them.
  """
  total = sum(forms.values())
  characters = ["▁", *CHARACTERS]
  ranked = sorted(
    (form for form in forms if form not in characters),
    key=lambda form: (form not in wanted, -forms[form], form),
  )
  room = size - len(characters)
  if len(wanted) > room:
    raise ValueError(
      f"{len(wanted)} words do not fit into a vocabulary of {size}: raise VOCAB_SIZE"
    )
  kept = [form for form in ranked if form in wanted or forms[form] > total * 1e-4][:room]
  floor = math.log(1 / total)
  fragments: Counter[str] = Counter()
  for form in kept:
    for start in range(len(form)):
      for end in range(start + 2, min(start + 5, len(form) + 1)):
        fragments[form[start:end]] += 1
  by_weight = sorted(fragments, key=lambda part: (-fragments[part] * len(part), part))
  fill = [part for part in by_weight if part not in forms][: room - len(kept)]
  below = floor - FRAGMENT_PENALTY
  return [
    *((form, math.log(forms[form] / total)) for form in kept),
    *((part, below + math.log(fragments[part] / len(kept))) for part in fill),
    *((character, floor - CHARACTER_PENALTY) for character in characters),
  ]


def save_tokenizer(tokenizer: Tokenizer, sentinels: int, folder: Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json, for
  `transformers.AutoTokenizer.from_pretrained(folder)`.
  """
  PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token=PAD,
    eos_token=EOS,
    unk_token=UNK,
    model_max_length=512,
    extra_special_tokens=[f"<extra_id_{n}>" for n in range(sentinels)],
    clean_up_tokenization_spaces=False,
  ).save_pretrained(folder)
