"""Sources: every format, a folder or the hub gives its documents."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearfx.data import reading
from shearfx.data.documents import from_records, open_source
from shearfx.data.records import Dialogue, Kind, Text
from shearfx.data.text_cleaning import clean_text, paragraphs
from shearfx.errors import DataError
from tests.source_files import FRESH_FOLDER, IRREGULAR, TEXTS, texts_of, turns_of, write

# Cleaning


@given(st.text(st.one_of(st.characters(), st.sampled_from("\u200b\u200c\u200d\ufeff\r\n\x85\u2028\xa0\ufffd aé\x00"))))
def test_cleaning_leaves_only_text_and_is_done_once(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert {char for char in cleaned if unicodedata.category(char) in IRREGULAR} <= {"\n", "\t"}
    assert not set(cleaned) & set("\u200b\u2060\ufeff\ufffc\ufffd\u2028\u2029\xa0\u3000\xad\u202e")
    assert "\n\n\n" not in cleaned
    assert cleaned == cleaned.strip("\n")
    cleaned.encode()  # no halves of surrogates

    def plain(of: str) -> str:  # what stays is in the old order
        return "".join(char for char in of if char.isalnum() and not 0xE000 <= ord(char) <= 0xF8FF)

    assert plain(cleaned) == plain(text)


def test_ordinary_text_is_untouched() -> None:
    text = "Größe ≤ 5 µm – “quoted” 日本語 हिन्दी می\u200cخواهم 👩\u200d💻\n\n\tdef f(x):\n        return x"
    assert clean_text(text) == text


def test_joiners_between_ascii_are_rubbish() -> None:
    assert clean_text("a\u200db \u200cc\u200d") == "ab c"


@given(st.text("ab \n\t"))
def test_paragraphs_join_to_the_text(text: str) -> None:
    cleaned = clean_text(text)
    parts, between = paragraphs(cleaned)
    assert between.join(parts) == cleaned
    assert all(parts)
    assert all("\n\n" not in part for part in parts)


# Formats


@FRESH_FOLDER
@given(texts=TEXTS)
def test_every_format_gives_the_same_documents(tmp_path: Path, texts: list[str]) -> None:
    for name in ("a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.ndjson"):
        path = write(tmp_path / name, [{"id": 3, "text": text} for text in texts])
        assert texts_of(open_source(path, kind="pretrain")) == texts
    lines = tmp_path / "lines.json"  # as the hub names many files of JSON lines
    lines.write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert texts_of(open_source(lines, kind="pretrain")) == texts
    assert texts_of(from_records(texts, kind="pretrain", name="a")) == texts


@FRESH_FOLDER
@given(lines=st.lists(st.sampled_from(["", " ", "word", "two words"]), max_size=30), size=st.integers(1, 40))
def test_a_text_file_is_one_document_however_long(tmp_path: Path, lines: list[str], size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PART", size)
        parts = list(reading.text_parts(path))
    assert "".join(text for _, text, _ in parts) == "\n".join(lines)
    assert [more for _, _, more in parts] == [True] * (len(parts) - 1) + [False] * bool(parts)
    assert all(text.strip() for _, text, _ in parts[1:])
    longest = max([len(line) + 1 for line in lines], default=0)
    runs = "".join(" " if line.strip() else "b" for line in lines).split(" ")  # a run of blank lines is not divided
    assert all(len(text) <= 2 * size + longest * (2 + max(map(len, runs))) for _, text, _ in parts)


SHAPES: list[dict[str, Any]] = [
    {"instruction": "ask", "output": "say"},
    {"instruction": "ask", "input": "", "output": "say"},
    {"instruction": "ask", "context": None, "response": "say", "category": "x"},
    {"prompt": "ask", "completion": "say"},
    {"prompt": "ask", "response": "say", "id": 1},
    {"question": "ask", "answer": "say"},
    {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]},
    {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
    {"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "say"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "ask"}]},
            {"role": "model", "content": [{"type": "text", "text": "say"}]},
        ]
    },
    {
        "messages": [
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "ask"},
            {"role": "assistant", "content": "say"},
            {"role": "user", "content": "bye"},
        ]
    },
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("record", SHAPES, ids=lambda record: "/".join(record))
def test_instructions_of_every_shape(tmp_path: Path, record: dict[str, Any], suffix: str) -> None:
    source = open_source(write(tmp_path / f"a{suffix}", [record, record]), kind="instruct")
    assert turns_of(source) == [[("user", "ask"), ("assistant", "say")]] * 2


def test_input_and_system_are_kept_apart() -> None:
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3"}
    system = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    source = from_records([alpaca, {"messages": system}], kind="instruct", name="x")
    documents = [document for document in source if isinstance(document, Dialogue)]
    assert [document.input for document in documents] == ["1 2", ""]
    assert [turn.role for turn in documents[1].messages] == ["system", "user", "assistant"]


def test_fields_can_stand_behind_the_source(tmp_path: Path) -> None:
    place = tmp_path / "notes.jsonl"
    place.write_text('{"body": "One.", "head": "Two."}\n')
    assert texts_of(open_source(f"{place}#body", kind="pretrain")) == ["One."]
    source = open_source(f"{place}#head, body", kind="pretrain")
    assert texts_of(source) == ["Two.\n\nOne."] and source.name == "notes"
    with pytest.raises(DataError, match=r"no field 'text'(.|\n)*behind the file, notes.parquet#body"):
        open_source(place, kind="pretrain")
    sharp = tmp_path / "c#.txt"
    sharp.write_text("Three.")
    assert open_source(str(sharp), kind="pretrain").name == "c#"


def test_columns_name_the_fields() -> None:
    record = {"text": "no", "body": "yes", "head": "title", "ask": "q", "about": "i", "say": "a"}
    assert texts_of(from_records([record], kind="pretrain", name="x", columns="body")) == ["yes"]
    assert texts_of(from_records([record], kind="pretrain", name="x", columns=["head", "body"])) == ["title\n\nyes"]
    asked = from_records([record], kind="instruct", name="x", columns=["ask", "about", "say"])
    assert turns_of(asked) == [[("user", "q"), ("assistant", "a")]]
    assert [document.input for document in asked if isinstance(document, Dialogue)] == ["i"]


@pytest.mark.parametrize("response", ["", "  ", None])
def test_no_answer_is_nothing_to_learn(response: str | None) -> None:
    assert turns_of(from_records([{"prompt": "a", "completion": response}], kind="instruct", name="x")) == [[]]


def test_a_json_object_may_hold_the_list(tmp_path: Path) -> None:
    for text in ('{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}', '{"text": "a"}'):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert texts_of(open_source(tmp_path / "a.json", kind="pretrain")) == ["a", "b"][: text.count("text")]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"text": "2"}])
    write(tmp_path / "a" / "z.parquet", [{"text": "1"}])
    (tmp_path / "c.txt").write_text("3", encoding="utf-8")
    for passed_over in ("README.md", ".hidden.txt", "d.png", "code.py", "weights.pkl"):
        (tmp_path / passed_over).write_text("no", encoding="utf-8")
    source = open_source(tmp_path, kind="pretrain")
    assert (texts_of(source), source.name) == (["1", "2", "3"], tmp_path.name)
    several = open_source([str(tmp_path / "c.txt"), tmp_path / "b.jsonl"], kind="pretrain", name="both")
    assert (texts_of(several), several.name) == (["3", "2"], "both")


@pytest.mark.parametrize(("file", "name"), [("a.b.jsonl.gz", "a.b"), ("C4.parquet", "C4"), ("x.txt", "x")])
def test_a_source_is_named_after_its_file(tmp_path: Path, file: str, name: str) -> None:
    if file.endswith(".txt"):
        (tmp_path / file).write_text("a", encoding="utf-8")
    else:
        write(tmp_path / file, [{"text": "a"}])
    assert open_source(tmp_path / file, kind="pretrain").name == name


def test_max_documents_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(9)])
    assert texts_of(open_source(path, kind="pretrain", max_documents=3)) == ["0", "1", "2"]
    monkeypatch.setattr(reading, "PART", 4)
    (tmp_path / "b.txt").write_text("one\n\ntwo\n\nthree", encoding="utf-8")
    (tmp_path / "c.txt").write_text("four", encoding="utf-8")
    files = [tmp_path / "b.txt", tmp_path / "c.txt"]
    assert "".join(texts_of(open_source(files, kind="pretrain", max_documents=1))) == "one\n\ntwo\n\nthree"


def test_reading_writes_nothing_beside_the_data(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", [{"text": "a"}])
    write(tmp_path / "data" / "b.jsonl", [{"text": "b"}])
    before = sorted(os.listdir(tmp_path / "data"))
    assert texts_of(open_source(tmp_path / "data", kind="pretrain")) == ["a", "b"]
    assert sorted(os.listdir(tmp_path / "data")) == before


# The hub


@pytest.mark.parametrize(
    ("spec", "config", "split"),
    [
        ("me/data", None, "train"),
        ("data:en", "en", "train"),
        ("a/b:en:test", "en", "test"),
        ("a/b::test", None, "test"),
    ],
)
def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch, spec: str, config: str | None, split: str) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, **options: Any) -> Iterator[dict[str, str]]:
        calls.append((path, name, options))
        return ({"text": str(number)} for number in range(5))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = open_source(spec, kind="pretrain", max_documents=2)
    assert texts_of(source) == ["0", "1"]
    assert source.name == spec
    # streamed, and without trust_remote_code: nothing that comes with the data is run
    assert set(map(str, calls)) == {str((spec.split(":")[0], config, {"split": split, "streaming": True}))}


def test_a_stream_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise ConnectionError("connection reset")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"broke off after row 1\n.*ConnectionError: connection reset"):
        list(open_source("me/data", kind="pretrain"))


def test_a_record_of_the_hub_is_named_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "a"}, {"body": "b"}])
    with pytest.raises(DataError, match=r"its fields: 'body'\n  where: me/data, row 2"):
        list(open_source("me/data", kind="pretrain"))


def test_the_hub_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="there is no source 'nobody/nothing'") as caught:
        open_source("nobody/nothing", kind="pretrain")
    assert f"there is no {tmp_path / 'nobody' / 'nothing'}" in str(caught.value)
    assert "asked the hub" in str(caught.value)
    (tmp_path / "stories").mkdir()
    with pytest.raises(DataError, match="did you mean stories"):
        open_source("storys", kind="pretrain")


# Real files


@pytest.mark.parametrize(
    ("file", "kind", "count"),
    [
        ("text/c4_validation_2k.parquet", "pretrain", 2000),
        ("text/tinystories_train.jsonl", "pretrain", 780),
        ("text/tinystories_valid.jsonl", "pretrain", 195),
        ("instruct/alpaca_1000.json", "instruct", 999),  # the file lists that many
        ("instruct/gsm8k_train.parquet", "instruct", 7473),
    ],
)
def test_real_sources(shared: Path, file: str, kind: Kind, count: int) -> None:
    documents = list(open_source(shared / "data" / file, kind=kind))
    assert len(documents) == count
    assert all(document.text if isinstance(document, Text) else document.messages for document in documents)
