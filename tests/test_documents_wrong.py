"""Sources: whatever is wrong with one is named by file and line."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearfx.data.documents import open_source
from shearfx.data.records import Kind
from shearfx.errors import DataError
from tests.source_files import FRESH_FOLDER, texts_of, write


@FRESH_FOLDER
@given(
    good=st.integers(0, 30),
    after=st.integers(0, 3),
    blank=st.integers(0, 2),
    bad=st.sampled_from(
        ['{"text": "a', "{'text': 'a'}", "text", '{"text": "a"}}', "[1, 2", '"text"', "3", "[]", "null"]
    ),
)
def test_every_malformed_line_is_named_by_its_number(
    tmp_path: Path, good: int, after: int, blank: int, bad: str
) -> None:
    path = tmp_path / "a.jsonl"
    fine = '{"text": "fine"}\n'
    path.write_text(fine * good + "\n" * blank + bad + "\n" + fine * after, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(open_source(path, kind="pretrain"))
    said = str(caught.value)
    assert re.search(rf"a\.jsonl, line {good + blank + 1}\b", said)
    assert "malformed JSON" in said or "no JSON object" in said


@FRESH_FOLDER
@given(good=st.integers(0, 9), kind=st.sampled_from(["pretrain", "instruct"]), lines=st.booleans())
def test_a_record_of_no_use_is_named_with_its_fields(tmp_path: Path, good: int, kind: Kind, lines: bool) -> None:
    fine = {"text": "a"} if kind == "pretrain" else {"prompt": "a", "completion": "b"}
    path = write(tmp_path / ("a.jsonl" if lines else "a.json"), [fine] * good + [{"title": "x", "body": "y"}])
    with pytest.raises(DataError) as caught:
        list(open_source(path, kind=kind))
    said = str(caught.value)
    assert f"{path}, {'line' if lines else 'object'} {good + 1}\n" in said
    assert "its fields: 'title', 'body'" in said
    assert "columns=" in said


def test_malformed_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n {"text": "a"},\n {"text": }\n]', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json, line 3, column 11, near"):
        open_source(path, kind="pretrain")
    path.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json, line 2"):
        list(open_source(path, kind="pretrain"))
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="malformed JSON"):
        open_source(path, kind="pretrain")


def test_json_over_many_lines_named_jsonl_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('[\n {"text": "a"}\n]', encoding="utf-8")
    with pytest.raises(DataError, match=r"name the file \.json"):
        open_source(path, kind="pretrain")


PROSE = "Das wäre schön, sagte er, und schloss die Tür hinter sich zu. "
ENCODED = [
    (PROSE, "latin-1", "CP1252"),
    ("“It’s”, he said – and went on to say more of what he had in mind. ", "cp1252", "CP1252"),
    ("Он сказал, что завтра будет хорошая погода и мы пойдём гулять. ", "cp1251", "CP1251"),
    ("これは日本語の文です。明日は晴れるでしょう。", "shift_jis", "CP932"),
    ("这是一个中文的句子，今天天气很好，我们去散步。", "gb18030", "GB18030"),
    (PROSE, "utf-16", "UTF-16"),
    (PROSE, "utf-16-le", "UTF-16LE"),
    ("Only ASCII letters are in this text. ", "utf-16-be", "UTF-16BE"),
]


@pytest.mark.parametrize(
    ("text", "encoding", "name"), ENCODED, ids=[f"{name}-{at}" for at, (_, name, _) in enumerate(ENCODED)]
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_another_encoding_is_named_with_line_byte_and_remedy(
    tmp_path: Path, text: str, encoding: str, name: str, suffix: str
) -> None:
    path = tmp_path / f"it's{suffix}"
    path.write_bytes((text * 20).encode(encoding))
    with pytest.raises(DataError) as caught:
        open_source(path, kind="pretrain")
    said = str(caught.value)
    assert f"{path}, line 1, byte " in said
    assert f"it looks like {name}: iconv -f {name} -t UTF-8 " in said


@FRESH_FOLDER
@given(lines=st.integers(0, 40), offset=st.integers(0, 9))
def test_the_byte_that_is_not_utf8_is_counted_from_the_start(tmp_path: Path, lines: int, offset: int) -> None:
    path = tmp_path / "a.txt"
    before = "größer\n".encode() * lines + b"x" * offset
    path.write_bytes(before + b"\xe9t\xe9 came, and all went out to the fields\n")
    with pytest.raises(DataError) as caught:
        list(open_source(path, kind="pretrain"))
    assert f"line {lines + 1}, byte {len(before)} of the file (0xE9)" in str(caught.value)


def test_utf8_with_a_mark_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("wörd", encoding="utf-8-sig")
    assert texts_of(open_source(tmp_path / "a.txt", kind="pretrain")) == ["wörd"]


def test_binary_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(DataError, match="looks binary"):
        open_source(tmp_path / "a.txt", kind="pretrain")


def test_damaged_parquet_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": "abc" * number} for number in range(100)])
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"PAR1",
        whole[: len(whole) // 2],
        b"no parquet at all",
        whole[:40] + b"\xff" * 60 + whole[100:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"parquet file is damaged.*\n.*a\.parquet"):
            list(open_source(path, kind="pretrain"))


def test_damaged_gzip_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", [{"text": "abc" * number} for number in range(100)])
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"plain text", whole[:30] + b"\xff" * 40 + whole[70:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read.*\n.*a\.jsonl\.gz"):
            list(open_source(path, kind="pretrain"))


def test_parquet_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [{"url": "x", "text": "a", "more": {"deep": 1}}])
    asked = []
    plain = pq.ParquetFile.iter_batches

    def watched(self: Any, **options: Any) -> Iterator[Any]:
        asked.append(options["columns"])
        return plain(self, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    open_source(path, kind="pretrain")
    assert asked == [["text"]]


Call = Callable[[Path], object]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "is empty"),
        ("a.jsonl", "\n", "is empty"),
        ("a.json", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", '{"text": 3}', "no text but a number"),
        ("a.jsonl", '{"text": ["a"]}', "no text but a list"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}', "open the source as kind='instruct'"),
        ("a.pkl", "x", "may hold code"),
        ("a.py", "x", "may hold code"),
        ("a.csv", "x", r"files named \.csv are not read"),
        ("a", "x", "without a suffix"),
    ],
)
def test_files_of_no_use_are_told(tmp_path: Path, file: str, content: str, said: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        open_source(tmp_path / file, kind="pretrain")
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "a"}, "no prompt and response"),
        ({"messages": "hello"}, "no list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1\n"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}, "message 2\n"),
        ({"messages": ["x"]}, "message 1\n"),
        ({"prompt": 1, "completion": "b"}, "'prompt' is no text"),
    ],
)
def test_instructions_of_no_use_are_told(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_source(write(tmp_path / "a.jsonl", [record]), kind="instruct")
    assert "a.jsonl, line 1" in str(caught.value)


def test_missing_files_are_told_with_near_names(tmp_path: Path) -> None:
    write(tmp_path / "tinystories_train.jsonl", [{"text": "a"}])
    for spec in (tmp_path / "tinystories_trian.jsonl", str(tmp_path / "tinystories-train.json")):
        with pytest.raises(DataError, match=r"did you mean .*tinystories_train\.jsonl\?"):
            open_source(spec, kind="pretrain")
    with pytest.raises(DataError, match=r"the folder holds tinystories_train\.jsonl"):
        open_source(tmp_path / "x.txt", kind="pretrain")
    with pytest.raises(DataError, match="there is no folder"):
        open_source(tmp_path / "no" / "x.txt", kind="pretrain")


def test_wrong_options_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: open_source(path, kind="train"), "'train'"),  # type: ignore[arg-type]
        (lambda: open_source([], kind="pretrain"), "no source is named"),
        (lambda: open_source(path, kind="pretrain", max_documents=0), "max_documents is 0"),
        (lambda: open_source(path, kind="instruct", columns=["a", "b", "c", "d"]), "4 columns"),
        (lambda: open_source(path, kind="pretrain", columns="body"), "no field 'body'; its fields: 'text'"),
        (lambda: open_source(tmp_path / "b.txt", kind="instruct"), "no prompts and responses"),
    ]
    (tmp_path / "b.txt").write_text("a", encoding="utf-8")
    for call, said in calls:
        with pytest.raises(DataError, match=said):
            call()


def test_folders_of_no_use_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files"):
        open_source(tmp_path, kind="pretrain")
    (tmp_path / "data.arrow").write_text("x", encoding="utf-8")
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="to_parquet"):
        open_source(tmp_path, kind="pretrain")
