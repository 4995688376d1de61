"""What is wrong with a file that others wrote is said in one line: file, place, what."""

import json

import pytest

from sapt_jax.errors import InputError
from sapt_jax.text_files import (
  json_lines,
  object_lines,
  parse_json,
  read_json,
  read_object,
  read_text,
)


def complaint(read, *given):
  with pytest.raises(InputError) as caught:
    read(*given)
  [line] = str(caught.value).split("\n")
  return line


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", r"x.json: is empty"),
    (b" \n\n", r"x.json: is empty"),
    (b'{"a": 1', r"x.json: not JSON (Expecting ',' delimiter, column 8)"),
    (b'{"a": 1,\n\n"b" 2}', r"x.json:3: not JSON (Expecting ':' delimiter, column 5)"),
    (b"<html>\nnot found</html>", r"x.json: a page of markup, not JSON; download the file again"),
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
      r"x.json: a Git LFS pointer, not the file itself; fetch it with git lfs pull",
    ),
    (b'{"a":\n "caf\xe9"}', r"x.json:2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ('{"a":\n "b"}'.encode("utf-16-le"), r"x.json:1: holds a zero byte, so it is no text"),
    (b'{"a":\n "\0\0"}', r"x.json:2: holds a zero byte, so it is no text; save it as UTF-8"),
    (b"[" * 100_000, r"x.json: JSON that is nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", r"x.json: a number that is too long"),
    (
      rb'{"rows": [{"a": "fine \ud83d\ude00"}, {"a": ["x", "cut \ud83d"]}]}',
      r"x.json: rows[1].a[1] holds half of a surrogate pair (\ud83d)",
    ),
    (rb'{"rows": {"\udc00": 1}}', r"x.json: a key of rows holds half of a surrogate pair (\udc00)"),
    (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', r"x.json: the key 'b' stands twice in an object"),
    (rb'"\uDBFF"', r"x.json: the text holds half of a surrogate pair (\udbff)"),
  ],
)
def test_bad_json_is_named_with_its_place(tmp_path, content, said):
  (tmp_path / "x.json").write_bytes(content)
  assert complaint(read_json, tmp_path / "x.json").startswith(f"{tmp_path}/{said}")


def test_what_is_wrong_in_a_large_text_is_found_in_time_and_memory_for_its_length(tmp_path):
  many, zeros = ",".join(f'"{n}": 0' for n in range(100_000)), ",".join("0" * 100_000)
  said = complaint(parse_json, f'{{{many}, "z": 1, "z": 2}}', "x")
  assert said.startswith("x: the key 'z' stands twice")
  long = f'{{"{"k" * 100_000}": [{zeros}, "\\ud83d"]}}'
  assert complaint(parse_json, long, "x").endswith("take it out")


def test_lines_must_be_objects_that_have_what_is_needed(tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text('{"task": 1}\n[2]\n')
  with pytest.raises(InputError, match=r"rows.jsonl:2: must be an object, not list"):
    list(object_lines(file))
  with pytest.raises(InputError, match=r"rows.jsonl:1: has no 'input'"):
    list(object_lines(file, "task", "input"))


def test_what_is_no_file_is_named(tmp_path):
  assert complaint(read_text, tmp_path / "x").endswith("x: no such file")
  assert complaint(read_text, tmp_path).endswith("cannot be read (Is a directory)")
  assert "cannot be read" in complaint(read_text, tmp_path / "a\0b")
  assert "cannot be read" in complaint(read_text, tmp_path / ("x" * 300))
  assert complaint(read_text, tmp_path / "x", "--input x") == "--input x: no such file"
  (tmp_path / "x").write_text("[1]")
  assert complaint(read_object, tmp_path / "x").endswith("must hold an object, not list")


def test_lines_have_their_numbers_and_strange_line_ends_are_no_ends(tmp_path):
  file, rows = tmp_path / "x.jsonl", [{"text": "a\u2028b"}, {"text": "\x0c\x85"}]
  text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
  file.write_text("\ufeff" + text + "\r\n", encoding="utf-8")
  assert [row for _, row in json_lines(file)] == rows
  assert [place for place, _ in json_lines(file)] == [f"{file}:1", f"{file}:3"]
  file.write_text('{"a": 1}\n{"a": }\n')
  assert (
    complaint(lambda: list(json_lines(file))) == f"{file}:2: not JSON (Expecting value, column 7)"
  )
