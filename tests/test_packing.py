"""Packing: windows are the documents' tokens and nothing else, labels leave out exactly prompts and padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shearfx.data.documents import Source, from_records, open_source
from shearfx.data.packing import IGNORED, Examples, hold_out, pack
from shearfx.data.prompts import WITH_INPUT, WITHOUT_INPUT
from shearfx.data.records import Document, Text
from shearfx.data.text_cleaning import clean_text, paragraphs
from shearfx.errors import DataError
from tests.tiny_tokenizers import CHAT, byte_tokenizer

WORDS = st.text("abcé \n\u200b", max_size=30)
PLAIN, BEGINNING, CHATTING = byte_tokenizer(), byte_tokenizer(bos=True), byte_tokenizer(chat=CHAT)
BOS, EOS, PAD = 256, 257, 258


def texts(*documents: str) -> Source:
    return from_records(documents, kind="pretrain", name="texts")


def dialogues(*pairs: tuple[str, str]) -> Source:
    return from_records([{"prompt": p, "completion": c} for p, c in pairs], kind="instruct", name="dialogues")


def decoded(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor | list[int], **options: bool) -> str:
    return str(tokenizer.decode(torch.as_tensor(ids).flatten(), **options))


def ids_of(text: str) -> list[int]:
    """Return the tokens of a text by the table of the byte tokenizer alone."""
    from tokenizers.pre_tokenizers import ByteLevel

    number = {letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))}
    # GPT-2's table: printable bytes stand for themselves, the others for the letters from 256 on, in order
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [number[chr(byte if byte in shown else 256 + hidden.index(byte))] for byte in text.encode()]


@given(documents=st.lists(WORDS, max_size=6), length=st.integers(2, 20), bos=st.booleans(), least=st.integers(0, 12))
def test_windows_are_the_cleaned_documents_with_separators_up_to_the_tail(
    documents: list[str], length: int, bos: bool, least: int
) -> None:
    expected: list[int] = []
    unused = 0
    for document in documents:
        parts, between = paragraphs(clean_text(document))
        kept = between.join(part for part in parts if least == 0 or len(part.encode()) > least)
        expected += [BOS] * (bos and bool(kept)) + ids_of(kept) + [EOS] * bool(kept)
        unused += not kept
    tokenizer = BEGINNING if bos else PLAIN
    if not documents or len(expected) < length:
        with pytest.raises(DataError, match=f"has {len(expected)} tokens" if documents else "is empty"):
            pack(texts(*documents), tokenizer, sequence_length=length, min_tokens=least)
        return
    packed = pack(texts(*documents), tokenizer, sequence_length=length, min_tokens=least)
    assert packed.ids.dtype == torch.int64
    assert packed.ids.shape == (len(expected) // length, length)
    assert packed.ids.flatten().tolist() == expected[: packed.ids.numel()]
    assert torch.equal(packed.labels, packed.ids)
    assert packed.tally.left_over == len(expected) - packed.ids.numel() < length
    assert (packed.tally.documents, packed.tally.unused) == (len(documents), unused)
    assert packed.tokens == len(packed) * (length - 1)


@given(pieces=st.lists(st.tuples(st.text("ab \n", max_size=9), st.booleans()), min_size=1, max_size=8))
def test_parts_of_one_text_are_one_document(pieces: list[tuple[str, bool]]) -> None:
    pieces[-1] = (pieces[-1][0], False)
    parts: list[Document] = [Text(text, continues=more) for text, more in pieces]
    expected: list[int] = [EOS] * 0
    whole: list[str] = []
    for text, more in pieces:
        cleaned = clean_text(text)
        whole += [cleaned + "\n\n" * more] if cleaned else []
        if not more and whole:
            expected += [*ids_of("".join(whole)), EOS]
        whole = whole if more else []
    source = Source("parts", "pretrain", "parts", lambda: parts)
    if len(expected) < 2:
        with pytest.raises(DataError, match="too few"):
            pack(source, PLAIN, sequence_length=2, min_tokens=0)
        return
    packed = pack(source, PLAIN, sequence_length=2, min_tokens=0)
    assert packed.ids.flatten().tolist() == expected[: len(expected) // 2 * 2]


def test_only_paragraphs_of_more_tokens_than_asked_for_are_kept() -> None:
    source = texts(f"{'a' * 64}\n\n{'b' * 65}\n\n{'c' * 200}", "short")
    packed = pack(source, PLAIN, sequence_length=67)  # the paper's 64; 4 windows hold 65 + 2 + 200 + 1 tokens
    assert decoded(PLAIN, packed.ids) == "b" * 65 + "\n\n" + "c" * 200 + "</s>"
    counts = packed.tally
    assert (counts.paragraphs, counts.short, counts.longest, counts.unused) == (4, 2, 200, 1)
    assert "2 of 4 paragraphs too short" in str(packed)


CONTENT = st.text("abé ", min_size=1, max_size=12).filter(str.strip)


@example(pairs=[("a", "b")], length=300, chat=True)
@given(
    pairs=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=40),
    length=st.sampled_from([25, 40, 190, 400]),
    chat=st.booleans(),
)
def test_labels_leave_out_exactly_prompts_and_padding(pairs: list[tuple[str, str]], length: int, chat: bool) -> None:
    expected = []
    for prompt, response in ((clean_text(p), clean_text(r)) for p, r in pairs):
        asked = f"<|user|>{prompt}</s>\n<|assistant|>" if chat else (
            f"{WITHOUT_INPUT}\n\n### Instruction:\n{prompt}\n\n### Response:\n"
        )  # fmt: skip
        before = [token for part in asked.split("</s>") for token in [*ids_of(part), EOS]][:-1]
        after = [*ids_of(response), EOS]
        expected.append(((before + after)[:length], ([IGNORED] * len(before) + after)[:length]))
    usable = [(ids, labels) for ids, labels in expected if set(labels) != {IGNORED}]
    tokenizer = CHATTING if chat else PLAIN
    if not usable:
        with pytest.raises(DataError, match=f"none of the {len(pairs)} dialogues"):
            pack(dialogues(*pairs), tokenizer, sequence_length=length)
        return
    packed = pack(dialogues(*pairs), tokenizer, sequence_length=length)
    found = []
    for ids, labels in zip(packed.ids.tolist(), packed.labels.tolist(), strict=True):
        while ids and ids[-1] == PAD:
            assert labels.pop() == IGNORED
            ids.pop()
        while ids:  # every dialogue is whole and begins where the one before it ended
            at = next(i for i, (want, _) in enumerate(usable) if ids[: len(want)] == want)
            size = len(usable[at][0])
            assert labels[:size] == usable[at][1]
            found.append(usable.pop(at))
            ids, labels = ids[size:], labels[size:]
    assert not usable  # each once
    assert packed.tally.documents == len(pairs)
    assert packed.tally.unused == len(pairs) - len(found)
    assert packed.tokens == sum(label != IGNORED for _, labels in found for label in labels)


def test_dialogues_fill_windows_that_have_room() -> None:
    pairs = [("a", "b" * size) for size in (60, 10, 60, 10, 30)]  # 24 tokens before the answer, 1 after it
    packed = pack(dialogues(*pairs), CHATTING, sequence_length=120)
    assert (packed.ids != PAD).sum(1).tolist() == [85 + 35, 85 + 35, 55]


def test_alpaca_template_has_the_input_and_every_answer_of_a_longer_dialogue() -> None:
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    packed = pack(from_records([record], kind="instruct", name="x"), BEGINNING, sequence_length=300)
    text = f"<s>{WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3</s>"
    assert decoded(BEGINNING, packed.ids[0]).replace("<pad>", "") == text
    chat = [("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    turns = {"messages": [{"role": role, "content": content} for role, content in chat]}
    packed = pack(from_records([turns], kind="instruct", name="x"), PLAIN, sequence_length=150)
    assert decoded(PLAIN, packed.ids[0], skip_special_tokens=True) == (
        "Be brief.\n\n### Instruction:\none\n\n### Response:\n1\n\n### Instruction:\ntwo\n\n### Response:\n2"
    )
    assert packed.labels[0][packed.labels[0] != IGNORED].tolist() == [*ids_of("12"), EOS]


def test_chat_template_learns_every_answer_and_no_question() -> None:
    chat = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "22")]
    turns = {"messages": [{"role": role, "content": content} for role, content in chat]}
    packed = pack(from_records([turns], kind="instruct", name="x"), CHATTING, sequence_length=200)
    learned = packed.labels[0][packed.labels[0] != IGNORED].tolist()
    assert learned == [*ids_of("1"), EOS, *ids_of("22"), EOS]
    text = "<|user|>one</s>\n<|assistant|>1</s>\n<|user|>two</s>\n<|assistant|>22</s>"
    assert decoded(CHATTING, packed.ids[0][packed.ids[0] != PAD]) == text


def test_chat_template_that_rewrites_earlier_answers_has_only_the_last_learned() -> None:
    forgetful = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% else %}...{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = byte_tokenizer(chat=forgetful)
    chat = [("user", "one"), ("assistant", "long"), ("user", "two"), ("assistant", "22")]
    turns = {"messages": [{"role": role, "content": content} for role, content in chat]}
    packed = pack(from_records([turns], kind="instruct", name="x"), tokenizer, sequence_length=200)
    assert packed.labels[0][packed.labels[0] != IGNORED].tolist() == [*ids_of("22"), EOS]
    ids = packed.ids[0][packed.ids[0] != PAD]
    assert decoded(tokenizer, ids) == "[user]one[assistant]...[user]two[assistant]22</s>"


@pytest.mark.parametrize("kind", ["pretrain", "instruct"])
def test_max_tokens_bounds_the_windows_and_progress_is_told(kind: str) -> None:
    def source() -> Source:
        if kind == "pretrain":
            return texts(*["word " * 100] * 20)
        return dialogues(*[("question", "answer " * 10)] * 200)

    steps: list[tuple[int, int | None]] = []
    whole = pack(source(), PLAIN, sequence_length=250)
    packed = pack(source(), PLAIN, sequence_length=250, max_tokens=1100, progress=lambda *counts: steps.append(counts))
    assert len(packed) == 4 < len(whole)
    assert torch.equal(packed.ids, whole.ids[:4])
    assert steps
    assert steps == sorted(steps)
    assert steps[-1] == (1100, 1100)


def test_packing_reads_no_further_than_it_needs_to() -> None:
    read = 0

    def documents() -> object:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield Text("word " * 20_000)

    source = Source("endless", "pretrain", "here", documents)  # type: ignore[arg-type]
    assert len(pack(source, PLAIN, sequence_length=100, max_tokens=1000)) == 10
    assert read <= 3


@given(
    count=st.integers(2, 60), data=st.data(), seed=st.integers(0, 2**31), kind=st.sampled_from(["pretrain", "instruct"])
)
def test_hold_out_parts_in_order(count: int, data: st.DataObject, seed: int, kind: Any) -> None:
    held = data.draw(st.integers(1, count - 1))
    ids = torch.arange(count)[:, None].expand(count, 3)
    labels = ids if seed % 2 else ids.clone()
    examples = Examples("x", kind, ids, labels)
    train, valid = hold_out(examples, held, seed=seed)
    learnt, judged = ([int(one) for one in part.ids[:, 0]] for part in (train, valid))
    assert len(judged) == held and not set(learnt) & set(judged)
    assert learnt == sorted(learnt) and judged == sorted(judged)
    others = set(range(count)) - set(judged)
    apart = {i for i in others if not {i - 1, i + 1} & set(judged)}
    expected = apart if kind == "pretrain" and 2 * len(apart) >= len(others) else others
    assert set(learnt) == expected and learnt, "neighbours in text hold the rest of the same documents"
    assert torch.equal(train.labels, train.ids)
    again = hold_out(examples, held, seed=seed)
    assert torch.equal(again[1].ids, valid.ids)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=3, max_size=40), window=st.integers(2, 9), seed=st.integers(0, 99),
    share=st.sampled_from([2, 5, 10]),
)  # fmt: skip
def test_nothing_of_a_document_that_is_held_out_is_learnt(
    lengths: list[int], window: int, seed: int, share: int
) -> None:
    """Every window knows its documents; of a source of few long ones, as much stays as has to."""
    texts = [chr(ord("a") + i % 26) * length for i, length in enumerate(lengths)]
    tokens = [i for i, text in enumerate(texts) for _ in range(len(text) + 1 if text else 0)]  # and its end
    if len(tokens) < 2 * window:
        return
    records = from_records(texts, kind="pretrain", name="x")
    examples = pack(records, PLAIN, sequence_length=window, min_tokens=0)
    real = [set(tokens[at * window : (at + 1) * window]) for at in range(len(examples))]
    assert examples.documents is not None
    found = [set(range(int(first), int(last) + 1)) for first, last in examples.documents]
    kept = [i for i, text in enumerate(texts) if text]
    assert [{kept[i] for i in one} for one in found] == real
    if (held := len(examples) // share) == 0 or held >= len(examples):
        return
    train, valid = hold_out(examples, held, seed=seed)
    assert train.documents is not None and valid.documents is not None
    judged = {i for first, last in valid.documents for i in range(int(first), int(last) + 1)}
    apart = [w for w, one in enumerate(found) if not one & judged]
    if 2 * len(apart) >= len(examples) - held:
        assert [tuple(row) for row in train.documents.tolist()] == [(min(found[w]), max(found[w])) for w in apart]
    else:
        assert 2 * len(train) >= len(examples) - held


def test_hold_out_is_uniform() -> None:
    examples = Examples("x", "pretrain", torch.arange(5).view(5, 1), torch.arange(5).view(5, 1))
    drawn = torch.zeros(5)
    for seed in range(2000):
        drawn[hold_out(examples, 2, seed=seed)[1].ids[:, 0]] += 1
    # each is drawn with probability 0.4: 800 times, standard deviation sqrt(2000 * 0.4 * 0.6) = 22, five of them
    assert (drawn - 800).abs().max() < 110


@pytest.mark.parametrize("count", [0, 4, 9, -1])
def test_hold_out_leaves_neither_side_empty(count: int) -> None:
    ids = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(DataError, match=f"{count} of 4 windows"):
        hold_out(Examples("x", "pretrain", ids, ids), count, seed=0)


Call = Callable[[], object]
LONG = ("a" * 100,)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pack(texts(*LONG), None, sequence_length=8), "no tokenizer"),
        (lambda: pack(texts(*LONG), PLAIN, sequence_length=1), "sequence_length=1"),
        (lambda: pack(texts(*LONG), PLAIN, sequence_length=8, max_tokens=7), "max_tokens=7"),
        (lambda: pack(texts(*LONG), PLAIN, sequence_length=8, min_tokens=-1), "min_tokens=-1"),
        (lambda: pack(texts(*LONG), PLAIN, sequence_length=102), "101 tokens, too few for one window of 102"),
        (lambda: pack(texts("a" * 30), PLAIN, sequence_length=8), "min_tokens=0"),
        (lambda: pack(texts("a" * 30), PLAIN, sequence_length=8), "the longest of all has 30"),
        (lambda: pack(texts(), PLAIN, sequence_length=8), "is empty"),
        (lambda: pack(dialogues(("a", "")), PLAIN, sequence_length=8), "none of the 1 dialogues"),
        (lambda: pack(dialogues(("a", "b")), PLAIN, sequence_length=8, template="chat"), "no chat template"),
        (lambda: pack(dialogues(("a", "b")), PLAIN, sequence_length=8, template="llama"), "'llama'"),  # type: ignore[arg-type]
        (
            lambda: pack(dialogues(("a", "b")), byte_tokenizer(chat="{{ raise_exception('no!') }}"), sequence_length=8),
            r"no!\n  where: dialogues, document 1",
        ),
    ],
)
def test_what_cannot_be_packed_is_said(call: Call, said: str) -> None:
    with pytest.raises(DataError, match=said):
        call()


def test_a_tokenizer_without_special_tokens_will_do() -> None:
    tokenizer = byte_tokenizer(eos=False)
    packed = pack(texts("a" * 70, "b" * 70), tokenizer, sequence_length=140)
    assert packed.ids[0].tolist() == ids_of("a" * 70 + "b" * 70)


@pytest.fixture(scope="module")
def real(stories: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(stories)
    return tokenizer


def test_real_stories_come_back_from_their_windows(real: PreTrainedTokenizerBase, shared: Path) -> None:
    source = open_source(shared / "data" / "text" / "tinystories_valid.jsonl", kind="pretrain", max_documents=20)
    packed = pack(source, real, sequence_length=64, min_tokens=0)
    documents = [document.text for document in source if isinstance(document, Text)]
    flat = packed.ids.flatten().tolist()
    starts = [at for at, token in enumerate(flat) if token == real.bos_token_id]
    assert len(starts) == 20 == flat.count(real.eos_token_id) + (flat[-1] != real.eos_token_id)
    for document, begin, end in zip(documents, starts, starts[1:], strict=False):
        assert flat[end - 1] == real.eos_token_id
        assert decoded(real, flat[begin + 1 : end - 1]) == clean_text(document)


def test_real_instructions_have_their_answers_as_labels(real: PreTrainedTokenizerBase, shared: Path) -> None:
    source = open_source(shared / "data" / "instruct" / "alpaca_1000.json", kind="instruct", max_documents=5)
    packed = pack(source, real, sequence_length=2048)  # pieces of words, as sentencepiece makes them
    learned = [token for token in packed.labels.flatten().tolist() if token != IGNORED]
    answers = [document.messages[-1].content for document in source if not isinstance(document, Text)]
    assert sorted(decoded(real, learned).removesuffix("</s>").split("</s>")) == sorted(map(clean_text, answers))
