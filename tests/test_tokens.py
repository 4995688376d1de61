"""Tokenizers as other tools leave them: what the backbone reads is what the file says."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from sapt_jax import learner
from sapt_jax.config import Config, Data
from sapt_jax.data.prompts import load_tokenizer
from sapt_jax.errors import InputError
from sapt_jax.methods.sequential import SequentialOptions
from tests import tiny

TEXT = "In 2024 it didn 't rain , he said ."


def codec_of(folder, frame="benchmark"):
  data = Data(max_source_length=96, max_target_length=24, frame=frame)
  options = Config(SequentialOptions(), data=data)
  return learner.make_codec(options, folder)


def rewrite(folder, change):
  """Changes tokenizer.json by a function of the tokenizer."""
  tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
  change(tokenizer)
  tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "LlamaTokenizer", "T5Tokenizer"])
def test_tokens_are_those_of_the_file_whatever_class_the_settings_name(tmp_path, named):
  folder = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  parts = [
    pre_tokenizers.Split(" ", "isolated"),
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
  ]

  def change(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)

  rewrite(folder, change)
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": named}))
  expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
  assert load_tokenizer(folder)(TEXT)["input_ids"] == expected


@pytest.mark.parametrize("cleans", [True, False])
def test_answers_come_back_with_the_spaces_that_they_were_written_with(tmp_path, cleans):
  folder = tiny.model_folder(tmp_path / "t5", tiny.T5)
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  settings |= {"clean_up_tokenization_spaces": cleans}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  codec = codec_of(folder)
  for answer in ("do n't", "well , yes .", "it 's"):
    assert codec.text(codec.target(answer)) == answer


def appends_end(tokenizer):
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<pad> $A </s>", special_tokens=[("<pad>", 0), ("</s>", 1)]
  )


def test_a_decoder_only_backbone_reads_no_end_token_behind_its_prompt(tmp_path):
  folder = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  plain = codec_of(folder).source("Say it.", "yes")
  rewrite(folder, appends_end)
  codec = codec_of(folder)
  assert codec.source("Say it.", "yes") == [0, *plain]  # what belongs at the beginning stays
  assert codec.encode("Task 1:")[-1] != 1
  assert len(codec.source("Say it.", "yes " * 99)) <= 96


def test_a_t5_still_reads_its_end_token(tmp_path):
  codec = codec_of(tiny.model_folder(tmp_path / "t5", tiny.T5))
  assert codec.source("Say it.", "yes")[-1] == 1
  assert codec.source("Say it.", "yes " * 99)[-1] == 1


def test_a_token_without_a_row_in_the_embedding_is_named_where_a_text_uses_it(
  tmp_path, capsys, monkeypatch
):
  from sapt_jax import train

  arguments = tiny.world(tmp_path)
  folder = tmp_path / "t5"
  rewrite(
    folder,
    lambda tokenizer: tokenizer.add_special_tokens(
      [AddedToken(f"<extra_{i}>", special=True) for i in range(20)]
    ),
  )
  codec = codec_of(folder)
  assert len(codec.tokenizer) > 272
  codec.source("Say it.", "yes")  # tokens that no text uses do no harm
  with pytest.raises(
    InputError, match=r"token '<extra_19>' has the id 277, but the backbone has 272"
  ):
    codec.source("Say it.", "yes <extra_19>")
  file = tmp_path / "data" / "SuperNI" / "task002_count" / "test.json"
  content = json.loads(file.read_text())
  content["Instances"][2]["input"] += " <extra_19>"
  file.write_text(json.dumps(content))
  code, err = tiny.run_program(
    train, [*arguments, "--output", tmp_path / "run"], monkeypatch, capsys
  )
  assert code == 2
  assert "task task002_count, test: token '<extra_19>'" in err
  assert not (tmp_path / "run").exists()


CHAT = (
  "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}|{% endif %}"
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_folder(tmp_path):
  folder = tiny.model_folder(tmp_path / "model", tiny.LLAMA)
  file = folder / "tokenizer_config.json"
  settings = json.loads(file.read_text()) | {"chat_template": CHAT, "bos_token": "<pad>"}
  file.write_text(json.dumps(settings))
  return folder


def test_the_chat_template_of_the_model_is_the_frame(chat_folder):
  codec = codec_of(chat_folder, "chat")
  prompt = codec.prompt("Say it.", "a {d} b")
  assert prompt == "<pad>26 Jul 2024|<|user|>Say it.\n\na {d} b<|end|><|assistant|>"
  assert codec.prompt("", "x") == "<pad>26 Jul 2024|<|user|>x<|end|><|assistant|>"
  ids = codec.source("Say it.", "x")
  assert ids == codec.tokenizer(codec.prompt("Say it.", "x"), add_special_tokens=False)["input_ids"]
  assert ids.count(codec.tokenizer.convert_tokens_to_ids("<pad>")) == 1


def test_a_text_of_the_users_is_the_frame(chat_folder):
  codec = codec_of(chat_folder, r"Task: {definition}\nText: {input}\nAnswer ({definition}):")
  assert codec.prompt("Say.", "x") == "Task: Say.\nText: x\nAnswer (Say.):"
  assert codec.prompt("", "x") == "Text: x\n"


def test_a_model_without_a_chat_template_is_named(tmp_path):
  folder = tiny.model_folder(tmp_path / "model", tiny.LLAMA)
  with pytest.raises(InputError, match=r"data\.frame chat: .*model has no chat template"):
    codec_of(folder, "chat")
  with pytest.raises(InputError, match=r"data\.frame 'Say': must be benchmark, chat, or a text"):
    Data(frame="Say")


@pytest.mark.parametrize(
  "frame", ["{input} {input}", "{definition}", "{instruction} {input}", "plain"]
)
def test_frames_with_other_places_are_refused(frame):
  with pytest.raises(InputError, match=r"data\.frame .*: must be benchmark, chat, or a text"):
    Data(frame=frame)


@pytest.mark.parametrize(
  "template", ["{{ messages[0]['content'] }}" * 2, "{{ messages[0]['role'] }}", "{{ 1 / 0 }}"]
)
def test_chat_templates_that_do_not_show_the_message_once_are_refused(chat_folder, template):
  file = chat_folder / "tokenizer_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
  with pytest.raises(InputError, match=r"data\.frame chat: .*give a text with"):
    codec_of(chat_folder, "chat")
