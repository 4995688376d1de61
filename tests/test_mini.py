"""The embedded benchmark: its stream, the pretraining mixture that must not know it,
and the shipped t5-mini.
"""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from sapt_jax.backbones import hf
from sapt_jax.mini import (
  T5_MINI,
  instructions,
  language,
  make_backbone,
  pretraining,
  related,
  tasks,
)

SHIPPED = pytest.mark.skipif(
  not (T5_MINI / "model.safetensors").exists(), reason="t5-mini is not in this checkout"
)
KIND_OF = {word: kind for kind, words in language.KINDS.items() for word in words}


@pytest.fixture(scope="module")
def stream():
  return {task.name: task for task in tasks.mini_stream(0)}


def rows(task):
  return [
    (example.input, example.references[0])
    for split in (task.train, task.dev, task.test)
    for example in split
  ]


def words(text):
  return "".join(c if c.isalnum() else " " for c in text).split()


def test_the_seed_decides_the_rows_and_nothing_else(stream):
  again, other = tasks.mini_stream(0), {task.name: task for task in tasks.mini_stream(1)}
  assert again == list(stream.values())
  for name, task in stream.items():
    assert task.train != other[name].train
    assert task.definition == other[name].definition


def test_a_negative_seed_is_refused():
  with pytest.raises(ValueError, match="-1"):
    tasks.mini_stream(-1)


def test_splits_have_their_sizes_and_are_disjoint(stream):
  for task in stream.values():
    assert [len(split) for split in (task.train, task.dev, task.test)] == [400, 40, 60]
    assert len({text for text, _ in rows(task)}) == 500, task.name


def test_definitions_differ_and_tell_no_label(stream):
  definitions = [task.definition for task in stream.values()]
  assert len(set(definitions)) == len(definitions) == 10
  tables = (tasks.FILM_LABELS, tasks.MEAL_LABELS, tasks.SECTION_LABELS, tasks.DESK_LABELS)
  labels = {label for table in tables for label in table.values()}
  assert not labels & {word for definition in definitions for word in words(definition)}


def test_related_pairs_cover_the_stream(stream):
  assert sorted(name for pair in tasks.PAIRS.values() for name in pair) == sorted(stream)


def test_related_tasks_share_no_label(stream):
  for pair in ("sentiment", "topic"):
    first, second = ({answer for _, answer in rows(stream[name])} for name in tasks.PAIRS[pair])
    assert not first & second


@pytest.mark.parametrize(
  "name", ["parcel_town", "diary_guest", "chest_content", "owner_list", "queue_ends", "order_slip"]
)
def test_answers_that_are_read_occur_in_the_input(stream, name):
  for text, answer in rows(stream[name]):
    assert set(words(answer)) <= set(words(text)), (text, answer)


@pytest.mark.parametrize(
  ("name", "labels"),
  [
    ("film_mood", tasks.FILM_LABELS),
    ("meal_verdict", tasks.MEAL_LABELS),
    ("headline_section", tasks.SECTION_LABELS),
    ("letter_desk", tasks.DESK_LABELS),
  ],
)
def test_labels_follow_from_the_kinds_of_the_words(stream, name, labels):
  for text, answer in rows(stream[name]):
    kinds = {KIND_OF.get(word) for word in words(text)} & labels.keys()
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    assert labels[kind] == answer, text


def test_readers_find_the_asked_for_entry(stream):
  for text, answer in rows(stream["chest_content"]):
    *facts, question = text.replace("!", ".").rstrip(".").split(". ")
    held = {words(fact)[1]: words(fact)[-1] for fact in facts}
    assert held[words(question)[2]] == answer
  for text, answer in rows(stream["owner_list"]):
    asked, *entries = text.split(" | ")
    assert dict(entry.split(" = ") for entry in entries)[answer] == asked.rstrip("?")


@pytest.fixture(scope="module")
def relatives():
  return {task.name: task for task in related.related_stream(0)}


def test_a_card_is_composed_of_what_two_earlier_tasks_ask(relatives):
  names = list(relatives)
  for family, name_of, label_of in (
    ("stay", "stay_guest", "stay_mood"),
    ("memo", "memo_sender", "memo_mood"),
    ("stall", "stall_trader", "stall_goods"),
  ):
    card = f"{family}_card"
    assert max(names.index(name_of), names.index(label_of)) < names.index(card)
    for text, answer in rows(relatives[card]):
      name, label = answer.split()
      assert name in words(text)
      assert label in (words(text) if family == "stall" else related.LABELS.values())
    for text, answer in rows(relatives[label_of]):
      moods = {KIND_OF.get(word) for word in words(text)} & related.LABELS.keys()
      assert family == "stall" or [related.LABELS[mood] for mood in moods] == [answer], text


def test_relatives_share_skills_and_labels_but_no_word_that_tells_a_mood(relatives):
  told = [
    {word for text, _ in rows(relatives[name]) for word in words(text)}
    & {*language.KINDS["praise"], *language.KINDS["blame"]}
    for name in ("stay_mood", "memo_mood")
  ]
  assert not told[0] & told[1]
  answers = [{answer for _, answer in rows(relatives[name])} for name in ("stay_mood", "memo_mood")]
  assert answers[0] == answers[1]


def test_the_market_is_read_from_both_ends(relatives):
  for name, end, part in (("stall_trader", 0, 0), ("stall_goods", -1, 1)):
    for text, answer in rows(relatives[name]):
      found = re.findall(r"(\w+) \+ (\w+)", text)
      assert (len(found), found[end][part]) == (3, answer)


@pytest.fixture(scope="module")
def sample():
  rng = np.random.default_rng(7)
  return [
    pretraining.mixture_pair(rng, progress)
    for progress in (0.0, 0.2, 0.3, 1.0)
    for _ in range(8000)
  ]


def test_the_mixture_knows_no_definition_and_no_input_of_the_stream(stream, relatives, sample):
  text = "\n".join(pair.source + "\n" + pair.target for pair in sample)
  for task in [*stream.values(), *relatives.values()]:
    assert task.definition not in text
    assert not [line for line, _ in rows(task) if line in text]


def test_the_mixture_is_decided_by_the_seed(sample):
  rng = np.random.default_rng(7)
  assert [pretraining.mixture_pair(rng, 0.0) for _ in range(100)] == sample[:100]


@pytest.mark.parametrize(("until", "only"), [(0.0, False), (0.1, False), (0.3, True)])
def test_the_mixture_begins_with_copying_alone(until, only):
  rng = np.random.default_rng(7)
  sources = [pretraining.mixture_pair(rng, 0.2, until).source for _ in range(100)]
  copied = [source for source in sources if "Write all again" in source or "backwards" in source]
  assert (len(copied) == len(sources)) == only


@pytest.mark.parametrize(
  "writer", instructions.FAMILIES, ids=lambda writer: writer.__name__.lstrip("_")
)
def test_every_answer_of_the_mixture_is_said_or_is_a_kind(writer):
  rng = np.random.default_rng(3)
  for definition, text, answer in (writer(rng) for _ in range(200)):
    assert answer
    said = {*words(definition), *words(text)}
    assert set(words(answer)) <= {*said, *language.KINDS}, (definition, text, answer)


def test_every_bucket_holds_the_mixture(tokenizer, sample):
  lost = [
    (source, target)
    for source, target in make_backbone.encode(tokenizer, sample)
    if not any(len(source) <= a and len(target) <= b for a, b in make_backbone.BUCKETS)
  ]
  assert len(lost) < len(sample) / 200


@pytest.fixture(scope="module")
def tokenizer():
  rng = np.random.default_rng(0)
  pairs = [pretraining.mixture_pair(rng) for _ in range(2000)]
  texts = [text for pair in pairs for text in (pair.source, pair.target)]
  return make_backbone.build_tokenizer(texts, language.lexicon(), pretraining.SENTINELS)


def test_tokenizer_has_a_piece_for_every_word_and_t5s_conventions(tokenizer):
  assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
  assert tokenizer.get_vocab_size() == make_backbone.VOCAB_SIZE
  assert tokenizer.token_to_id("<extra_id_0>") == make_backbone.VOCAB_SIZE - 1
  for word in filter(str.isalpha, language.lexicon()):
    assert len(tokenizer.encode(word).ids) == 2, word
  assert tokenizer.encode("goat").ids[-1] == 1


@SHIPPED
def test_shipped_tokenizer_gives_text_back(stream):
  tokenizer = AutoTokenizer.from_pretrained(str(T5_MINI))
  assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
  for task in stream.values():
    for text in (task.definition, *itertools.chain.from_iterable(rows(task)[:50])):
      ids = tokenizer(text).input_ids
      assert ids[-1] == 1
      assert 2 not in ids
      assert tokenizer.decode(ids, skip_special_tokens=True) == text


@SHIPPED
def test_shipped_model_is_small_and_finite():
  assert (T5_MINI / "model.safetensors").stat().st_size <= 8_000_000
  backbone = hf.load_backbone(str(T5_MINI))
  assert backbone.config.vocab_size == len(AutoTokenizer.from_pretrained(str(T5_MINI)))
  tokens = jnp.asarray([[3, 4, 5, 1]])
  logits = backbone.model.apply({"params": backbone.params}, tokens, tokens > 0, tokens, tokens > 0)
  assert logits.shape == (1, 4, backbone.config.vocab_size)
  assert bool(jnp.isfinite(logits).all())


@SHIPPED
def test_shipped_model_computes_what_torch_computes(torch):
  from transformers import T5ForConditionalGeneration

  reference = T5ForConditionalGeneration.from_pretrained(T5_MINI, dtype=torch.float32).eval()
  backbone = hf.load_backbone(str(T5_MINI))
  rng = np.random.default_rng(0)
  source, target = rng.integers(3, 1200, (2, 20)), rng.integers(3, 1200, (2, 6))
  with torch.no_grad():
    expected = reference(input_ids=torch.tensor(source), labels=torch.tensor(target)).logits.numpy()
  ones = [jnp.ones(x.shape, bool) for x in (source, target)]
  got = backbone.model.apply(
    {"params": backbone.params}, jnp.asarray(source), ones[0], jnp.asarray(target), ones[1]
  )
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)


def test_the_program_writes_a_folder_that_loads(tmp_path, monkeypatch):
  depth = {"num_layers": 1, "num_decoder_layers": 1}
  small = depth | {"d_model": 32, "d_kv": 8, "num_heads": 3, "d_ff": 32}
  monkeypatch.setattr(make_backbone, "CONFIG", make_backbone.CONFIG | small)
  make_backbone.main(
    ["--output", str(tmp_path), "--seed", "3", "--steps", "2", "--batch", "4", "--eval-rows", "20"]
  )
  backbone = hf.load_backbone(str(tmp_path))
  assert backbone.config.width == 32
  assert len(AutoTokenizer.from_pretrained(str(tmp_path))) == backbone.config.vocab_size
  assert (tmp_path / "pretraining_log.csv").read_text().startswith("step,loss,minutes\n2,")
  made_by = "--seed 3 --steps 2 --batch 4 --learning-rate 0.0012 --copy-until 0.15`"
  assert made_by in (tmp_path / "README.md").read_text()


def test_the_program_refuses_to_copy_until_drills_end(tmp_path, capsys):
  with pytest.raises(SystemExit, match="2"):
    make_backbone.main(["--output", str(tmp_path / "made"), "--steps", "2", "--copy-until", "0.4"])
  assert "--copy-until 0.4: must be in [0, 0.4)" in capsys.readouterr().err
  assert not (tmp_path / "made").exists()
