"""Scores of answers and of runs, against rouge-score itself
and the public scorer's forms written out by hand.
"""

import dataclasses
import math
import random

import pytest
from rouge_score import rouge_scorer, tokenizers

from sapt_jax import config, plots
from sapt_jax.config import tasks
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.evaluation.continual_metrics import alignment, blocks_used, continual_metrics
from sapt_jax.evaluation.text_metrics import METRICS, MultilingualTokenizer, score, scoring_of
from sapt_jax.mini.default import config as mini_config
from sapt_jax.results import taken
from sapt_jax.scoring import score_of_commonest

WORDS = (
  "The movie's running-times weren't good; 3.5 stars_ (relations): singing CATS, a1b2 "
  "generalization?"
).split()


def sentences(count: int) -> list[str]:
  draw = random.Random(0)
  return [" ".join(draw.choices(WORDS, k=draw.randint(0, 12))) for _ in range(count)]


def test_rouge_l_is_rouge_score_with_its_stemmer_best_over_references():
  scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
  texts = sentences(40)
  for prediction, *references in zip(texts, texts[1:], texts[2:], strict=False):
    best = max(scorer.score(target=r, prediction=prediction)["rougeL"].fmeasure for r in references)
    assert score("rouge_l", prediction, references) == 100 * best


def test_rouge_l_by_hand():
  # Longest common subsequence "the cat sat": 3 of 4 predicted words, 3 of 6 of the reference.
  by_hand = pytest.approx(100 * 2 * 0.75 * 0.5 / (0.75 + 0.5))
  assert score("rouge_l", "the cat sat down", ["the black cat often sat there"]) == by_hand
  assert score("rouge_l", "running", ["runs"]) == 100.0
  assert score("rouge_l", "", ["a"]) == 0.0


def test_the_multilingual_tokens_of_ascii_text_are_those_of_rouge_score():
  ours, theirs = MultilingualTokenizer(), tokenizers.DefaultTokenizer(use_stemmer=True)
  for text in [*sentences(200), "".join(map(chr, range(128)))]:
    assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    pytest.param("今天天气很好。", list("今天天气很好"), id="Chinese: a token per character"),
    pytest.param(
      "价格是３０元，ＯＫ！",
      ["价", "格", "是", "30", "元", "ok"],
      id="full-width digits and letters",
    ),
    pytest.param("カタカナと漢字", list("カタカナと漢字"), id="Japanese"),
    pytest.param("ﾊﾞｽ", list("バス"), id="half-width katakana are composed"),
    pytest.param("오늘 날씨가 좋다", ["오늘", "날씨가", "좋다"], id="Korean: words"),
    pytest.param(
      "الطقس جميل، اليوم؟",
      ["الطقس", "جميل", "اليوم"],
      id="Arabic: words, its own comma and question mark",
    ),
    pytest.param(
      "كِتَابٌ ـ جمـيل", ["كتاب", "جميل"], id="Arabic: vowel marks and tatweel are optional"
    ),
    pytest.param("שָׁלוֹם", ["שלום"], id="Hebrew points are optional"),
    pytest.param("می\u200cخواهم", ["میخواهم"], id="Persian: a joiner does not split"),
    pytest.param("हिन्दी में", ["हिन्दी", "में"], id="Hindi: vowel signs stay in their word"),
    pytest.param("ที่นี่", ["ที่", "นี่"], id="Thai: a token per character with its marks"),
    pytest.param("Café STRASSE straße", ["café", "strass", "strass"], id="Latin beyond a-z"),
    pytest.param(
      "我用iPhone 15拍照 running", ["我", "用", "iphon", "15", "拍", "照", "run"], id="mixed"
    ),
    pytest.param("\u0301 x", ["x"], id="a mark without a letter"),
    pytest.param("。，！ …", [], id="nothing but punctuation"),
  ],
)
def test_multilingual_tokens(text, tokens):
  assert MultilingualTokenizer().tokenize(text) == tokens


def test_rouge_l_beyond_latin_script():
  # Common subsequence 今天天气好: 5 of 6 and 5 of 6.
  chinese, reference = "今天天气很好", "今天的天气好"
  assert score("rouge_l", chinese, [reference]) == 0.0  # what the default tokeniser makes of it
  assert score("rouge_l_multilingual", chinese, [reference]) == pytest.approx(100 * 5 / 6)
  arabic = ["الطقسُ باردٌ", "الطقس جميل جدا"]
  assert score("rouge_l_multilingual", "الطقس جميل", arabic) == pytest.approx(80)
  assert score("rouge_l_multilingual", "答案是 yes", ["答案是 no"]) == pytest.approx(75)


def test_exact_match_looks_past_case_ascii_punctuation_and_spaces_alone():
  assert score("exact_match", " The  Answer, is: (A)!\n", ["no", "the answer is a"]) == 100.0
  # Nothing takes the place of "_".
  assert score("exact_match", "not entailment", ["not_entailment"]) == 0.0
  assert score("exact_match", "notentailment", ["not_entailment"]) == 100.0
  assert score("exact_match", "the answer is b", ["the answer is a"]) == 0.0
  assert score("exact_match", "好。", ["好"]) == 0.0


def test_unknown_metric():
  with pytest.raises(KeyError):
    score("bleu", "a", ["a"])
  assert {*METRICS, "benchmark", "accuracy"} == set(tasks.METRICS)
  with pytest.raises(InputError, match=r"evaluation\.metric 'bleu': must be .*token_f1"):
    config.Evaluation(metric="bleu")


def test_token_f1_is_the_harmonic_mean_of_the_shares_of_words():
  # Without articles 2 of 3 words said are wanted, 2 of 4 wanted are said.
  expected = 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)
  found = score("token_f1", "The red car is", ["a red car, parked here"])
  assert found == pytest.approx(100 * expected)
  assert score("token_f1", "the cat", ["cat"]) == 100.0
  assert score("token_f1", "red red", ["red"]) == pytest.approx(200 / 3)
  assert score("token_f1", "", ["red"]) == 0.0
  assert score("token_f1", "-", ["-"]) == 100.0


def test_edit_similarity_counts_characters_in_common():
  assert score("edit_similarity", "abcd", ["bcde"]) == pytest.approx(75.0)
  assert score("edit_similarity", " return x ", ["return x"]) == 100.0
  assert score("edit_similarity", "x", ["yy"]) == 0.0


@pytest.mark.parametrize(
  ("said", "label"),
  [
    ("Billing.", "billing"),
    ("It is billing", "billing"),
    ("not billing", "not billing"),
    ("billing or sales", None),
    ("rebilling", None),
    ("", None),
  ],
)
def test_accuracy_takes_the_label_that_an_answer_names(said, label):
  labels = ["billing", "sales", "not billing"]
  scoring = scoring_of("accuracy", labels)
  assert [scoring(said, [one]) for one in labels] == [100.0 * (one == label) for one in labels]


@pytest.mark.parametrize("labels", [["+", "-"], ["-1", "1"], ["C", "C++", "C#"], ["1.5", "15"]])
def test_labels_that_differ_in_punctuation_are_told_apart(labels):
  scoring = scoring_of("accuracy", labels)
  for said in labels:
    assert [scoring(said, [one]) for one in labels] == [100.0 * (one == said) for one in labels]
  assert [scoring("", [one]) for one in labels] == [0.0] * len(labels)


def test_labels_in_upper_and_lower_case_are_one():
  assert scoring_of("accuracy", ["Yes", "yes", "No"])("It is YES", ["yes"]) == 100.0


def test_a_function_of_the_users_scores(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("def half(prediction, references):\n  return 50 if references else 200\n")
  scoring = scoring_of(f"{file}:half")
  assert scoring("x", ["y"]) == 50.0
  with pytest.raises(InputError, match=r"mine\.py:half: gave 200; it must give a number from 0"):
    scoring("x", [])
  with pytest.raises(InputError, match=r"mine\.py has no function whole"):
    scoring_of(f"{file}:whole")
  file.write_text("import sys\nsys.exit(0)\n")
  with pytest.raises(InputError, match=r"mine\.py:f: SystemExit: 0"):
    scoring_of(f"{file}:f")
  file.write_text("def f(prediction, references):\n  return 1 / len(prediction)\n")
  with pytest.raises(InputError, match=r"mine\.py:f: ZeroDivisionError: division by zero"):
    scoring_of(f"{file}:f")("", ["y"])
  with pytest.raises(InputError, match="FileNotFoundError"):
    scoring_of(f"{tmp_path / 'none.py'}:f")


RUN: list[list[float | None]] = [[50.0, None, None], [60.0, 40.0, None], [30.0, 45.0, 70.0]]
SINGLE = [48.0, 44.0, 61.0]


def test_the_paper_form_by_hand():
  by_hand = {
    "AP": (30 + 45 + 70) / 3,
    "F.Ra": ((60 - 30) + (40 - 45)) / 2,
    "BWT": ((30 - 50) + (45 - 40)) / 2,
    "FWT": ((50 - 48) + (40 - 44) + (70 - 61)) / 3,
  }
  assert continual_metrics(RUN, SINGLE) == pytest.approx(by_hand)


def test_the_public_form_divides_bwt_by_all_tasks_and_has_its_own_baseline():
  paper, public = continual_metrics(RUN, SINGLE), continual_metrics(RUN, None, "public")
  assert public["BWT"] == pytest.approx((30 - 50 + 45 - 40 + 0) / 3)
  assert public["FWT"] == pytest.approx((50 + 40 + 70) / 3 - 50.94)
  assert (public["AP"], public["F.Ra"]) == (paper["AP"], paper["F.Ra"])


def test_what_stands_above_the_diagonal_is_not_read():
  zeros = [[x or 0.0 for x in row] for row in RUN]  # the public scorer's rows
  ragged = [row[: i + 1] for i, row in enumerate(RUN)]
  figures = continual_metrics(RUN, SINGLE)
  assert continual_metrics(zeros, SINGLE) == figures == continual_metrics(ragged, SINGLE)


@pytest.mark.parametrize("form", ["paper", "public"])
def test_one_task_has_nothing_to_forget(form):
  figures = continual_metrics([[80.0]], [75.0], form)
  assert (figures["AP"], figures["F.Ra"], figures["BWT"]) == (80.0, None, None)
  assert figures["FWT"] == pytest.approx(5.0 if form == "paper" else 80 - 50.94)


def test_figures_that_need_a_missing_score_are_none():
  assert continual_metrics(RUN)["FWT"] is None
  # Scored when learned, and at the end.
  unseen = [[90.0, None, None], [None, 50.0, None], [80.0, 40.0, 70.0]]
  assert continual_metrics(unseen)["F.Ra"] is None
  assert continual_metrics(unseen)["BWT"] == pytest.approx(-10)
  only_last = continual_metrics([[None, None], [40.0, 50.0]], [1.0, 2.0])
  assert only_last == {"AP": 45.0, "F.Ra": None, "BWT": None, "FWT": None}
  with pytest.raises(ValueError, match="shorter"):
    continual_metrics(RUN, [1.0])


def test_a_run_under_way_takes_the_baseline_of_the_tasks_it_has_seen():
  figures = continual_metrics([row[:2] for row in RUN[:2]], SINGLE)
  assert figures["FWT"] == pytest.approx(((50 - 48) + (40 - 44)) / 2)


@pytest.mark.parametrize(
  ("mixtures", "count"),
  [
    ([[1.0], [1.0]], 1),
    ([[1.0, 0.0], [0.0, 1.0]], 2),
    ([[0.5, 0.5, 0.0, 0.0]] * 2, 2),
    ([[1.0, 1.0, 1.0, 1.0]], 4),
  ],
)
def test_blocks_in_use_are_counted_by_the_weight_they_get(mixtures, count):
  assert blocks_used(mixtures) == pytest.approx(count)


@pytest.mark.parametrize(
  ("learning", "answering", "expected"),
  [
    ([[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.25, 0.75]], 0.0),
    ([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]], math.log(2) / 2),
    ([[1.0, 0.0]], [[0.0, 1.0]], math.log(1e6)),  # no weight at all is as little as can be told
    ([[0.5, 0.5]], [[0.500001, 0.500001]], 0.0),  # rounded
    ([[1.0, 0.0], [0.7, 1.0]], [[1.0, 0.0], [0.7, 1.0]], None),  # sharing
    ([], [], None),
  ],
)
def test_alignment_is_the_mean_divergence_of_answering_from_learning(learning, answering, expected):
  assert alignment(learning, answering) == (
    None if expected is None else pytest.approx(expected, abs=1e-9)
  )


def test_what_a_task_takes_is_named_and_what_is_next_to_nothing_is_not():
  mixtures = [[1.0], [0.04, 1.0], [-0.5, 0.8604, 1.0, 0.0], None]
  records = [{"training_mixture": mixture} for mixture in mixtures]
  assert taken(["a", "b", "c", "imported"], records) == {"c": {"a": -0.5, "b": 0.86}}


@pytest.mark.parametrize(
  ("train", "test", "score"),
  [
    ([("Yes",)] * 5 + [("No",)] * 3, [("yes",)] * 8 + [("no",)] * 2, 80),  # as exact_match reads it
    ([("a", "b")] * 3 + [("b", "c")] * 2, [("b",)] * 4, 100),  # any of the right ones
    ([("a",)], [], 0),
    ([], [("a",)], 0),
  ],
)
def test_always_the_commonest_answer_is_scored_as_answers_are(train, test, score):
  rows = [tuple(Example("x", answers) for answers in split) for split in (train, test)]
  task = Task("t", "Do it.", rows[0], (), rows[1])
  config = dataclasses.replace(
    mini_config, evaluation=dataclasses.replace(mini_config.evaluation, metric="exact_match")
  )
  assert score_of_commonest(config, task) == score


@pytest.mark.parametrize(
  ("mixtures", "range_"),
  [([[1.0], [0.25, 0.75]], (0.0, 1.0)), ([[1.0], [-0.25, 1.25]], (-0.25, 1.25))],
)
def test_a_picture_tells_weights_apart_that_are_no_shares(mixtures, range_, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(plots.plt, "close", drawn.append)
  plots.mixture_heatmap(tmp_path / "mixture.png", mixtures, ["a", "b"], "mixtures")
  assert drawn[0].axes[0].images[0].get_clim() == range_
