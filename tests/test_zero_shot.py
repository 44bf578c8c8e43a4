"""Zero-shot tasks: against one text at a time, against cases by hand, against lm-evaluation-harness, with bad files."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from shearfx.errors import DataError, ShearError
from shearfx.inference import logits_of
from shearfx.models import load_model
from shearfx.zero_shot import Answer, Item, Task, TaskResult, answers, kept, read_task, read_tasks, zero_shot
from shearfx.zero_shot.answers import encode
from shearfx.zero_shot.results import result_of
from shearfx.zero_shot.whose import weights_digest
from tests.tiny_tokenizers import byte_tokenizer

POSITIONS = 24


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
    }  # fmt: skip
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return model


class Counting(nn.Module):
    """Counts the tokens that a model reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.read = model, 0

    def forward(self, input_ids: torch.Tensor) -> Any:
        self.read += input_ids.numel()
        return self.model(input_ids=input_ids, use_cache=False)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


CHOICES = {"query": "the cat", "choices": [" sat", " ran off"], "gold": 1}
CONTEXTS = {"contexts": ["he saw me", "he saw it"], "continuation": " run.", "gold": 0}
WORDS = {"text": "a cat sat on a mat"}

words = st.text(st.sampled_from("ab "), min_size=1, max_size=6).filter(str.strip)


@given(
    pairs=st.lists(st.tuples(st.one_of(st.just(""), words), words), min_size=1, max_size=8),
    bos=st.booleans(),
    batch_tokens=st.sampled_from([1, 12, 1000]),
)
@settings(max_examples=40)
def test_many_at_a_time_equal_one_at_a_time(
    llama: nn.Module, pairs: list[tuple[str, str]], bos: bool, batch_tokens: int
) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    found = dict(answers(llama, tokenizer, pairs, batch_tokens=batch_tokens))
    assert sorted(found) == list(range(len(pairs)))
    for number, (context, continuation) in enumerate(pairs):
        # a byte is a token, so what a text's ids are is plain
        text = list((context + continuation).encode())
        first = len(context.rstrip().encode())
        start = [256] if bos else [] if first else [257]
        alphabet = dict(zip("ab ", (list(tokenizer(one).input_ids)[-1] for one in "ab "), strict=True))
        ids = torch.tensor([start + [alphabet[chr(byte)] for byte in text]])
        first += len(start)
        logits = logits_of(llama, ids).log_softmax(-1)[0, first - 1 : -1]
        expected = float(logits.gather(-1, ids[0, first:, None]).detach().sum())
        assert found[number].log_likelihood == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert found[number].greedy == bool((logits.argmax(-1) == ids[0, first:]).all())


def test_what_begins_alike_is_read_once(llama: nn.Module) -> None:
    counting = Counting(llama)
    pairs = [("question:", " y"), ("question:", " n"), ("question:", " no"), ("question:", " none")]
    for _ in answers(counting, byte_tokenizer(), pairs):
        pass
    # " y", " n" and " no" are beginnings of what is read for " none", or of each other, up to their last byte
    assert counting.read == len("question: non")


def test_long_contexts_lose_their_beginning(llama: nn.Module) -> None:
    tokenizer = byte_tokenizer(bos=True)
    request = encode(tokenizer, "a" * 50, "bb", POSITIONS)
    assert len(request.read) == POSITIONS
    assert 256 not in request.read
    assert encode(tokenizer, "ab ", "b", POSITIONS) == encode(tokenizer, "ab", " b", POSITIONS)
    with pytest.raises(DataError, match="50 tokens, the model 24 positions"):
        encode(tokenizer, "a", "b" * 50, POSITIONS)
    with pytest.raises(DataError, match="no token to begin with"):
        encode(byte_tokenizer(eos=False), "", "b", None)


class Merging:
    """Makes a token of every two equal letters."""

    bos_token_id, eos_token_id = None, 9

    def __call__(self, text: str, **_: Any) -> Any:
        found: list[int] = []
        while text:
            pair = len(text) > 1 and text[0] == text[1]
            found.append((100 if pair else 0) + ord(text[0]))
            text = text[1 + pair :]
        return SimpleNamespace(input_ids=found)

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[int]:
        return ids


@given(context=st.text("ab", max_size=6), continuation=st.text("ab", min_size=1, max_size=5))
def test_a_token_across_the_border_is_the_continuations(context: str, continuation: str) -> None:
    """All of the text is read, and all of the continuation is predicted, token by token of the whole."""
    tokenizer: Any = Merging()
    whole = tokenizer(context + continuation).input_ids
    request = encode(tokenizer, context, continuation, None)
    start = [] if len(request.predicted) < len(whole) else [9]
    assert [*request.read, request.predicted[-1]] == [*start, *whole]
    before = whole[: len(whole) - len(request.predicted)]
    assert before == tokenizer(context).input_ids[: len(before)]
    assert request.merged == (len(before) < len(tokenizer(context).input_ids))
    assert len(request.predicted) <= len(tokenizer(continuation).input_ids) + request.merged


def test_items_with_such_tokens_are_counted(llama: nn.Module) -> None:
    said = [Answer(-2.0, False), Answer(-3.0, True, merged=True)]
    result = result_of(Task("t", (read_one(CHOICES),) * 2, 2), [said, [Answer(-1.0, True)] * 2])
    assert result.merged == 1 == result.to_record()["merged"]
    assert "in 1 items a token across the border" in str(result)


def test_accuracies_by_hand() -> None:
    """Scores -2 and -3: the first is likelier, per character (4 and 8 of them) the second."""
    task = Task("t", (read_one(CHOICES), read_one({**CHOICES, "gold": 0}), read_one(CHOICES)), 5)
    said = [Answer(-2.0, False), Answer(-3.0, True)]
    result = result_of(task, [said, said, said])
    assert result.right == (False, True, False)
    assert result.right_norm == (True, False, True)  # -2 / len("sat") < -3 / len("ran off")
    assert [result.acc, result.acc_norm, result.chance] == pytest.approx([1 / 3, 2 / 3, 0.5])
    # a third of three: sample variance 1/3, over 3 items
    assert result.acc_stderr == pytest.approx(1 / 3)
    assert "first 3 of 5 items" in str(result)
    guessed = result_of(Task("g", (read_one(WORDS),) * 2, 2), [[Answer(-1.0, True)], [Answer(-3.0, False)]])
    assert guessed.acc_norm is None
    assert [guessed.acc, guessed.perplexity] == pytest.approx([0.5, math.exp(2)])


def read_one(record: dict[str, Any]) -> Any:
    from shearfx.zero_shot.tasks import _item

    return _item(json.dumps(record), "here")


def test_three_forms_of_items(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", CONTEXTS, CONTEXTS)
    write(tmp_path / "a.jsonl", WORDS)
    one, other = read_tasks([tmp_path], limit=1)
    assert (one.name, one.guessed, one.chance, other.name, other.available) == ("a", True, 0.0, "b", 2)
    assert one.items[0].contexts == ("a cat sat on a",)
    assert one.items[0].continuations == (" mat",)
    assert other.items[0].continuations == (" run.", " run.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no items"),
        ('{"text": "a b"}\n{"text": "one"}', "line 2"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "two or more"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2"),
        ('{"query": "a", "choices": ["b", 3], "gold": 0}', "something else than text"),
        ('{"query": " ", "choices": ["b", "c"], "gold": 0}', "query has an empty text"),
        ("{", "no JSON"),
        ("[1]", "no item of a task"),
        (f'{json.dumps(WORDS)}\n{json.dumps(CHOICES)}', "chosen, others guessed"),
        (f'{json.dumps(CONTEXTS)}\n{json.dumps(CHOICES)}', "what goes before a text, others what comes after"),
    ],
)  # fmt: skip
def test_files_that_are_no_tasks(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_task(path)


def test_folders_that_hold_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*.jsonl"):
        read_tasks([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        read_tasks([tmp_path / "none.jsonl"])
    file = write(tmp_path / "t.jsonl", WORDS)
    with pytest.raises(DataError, match="two tasks are called t"):
        read_tasks([file, tmp_path])
    with pytest.raises(DataError, match="at least one"):
        read_task(file, limit=0)


def test_answers_that_were_kept_are_not_asked_for_again(llama: nn.Module, tmp_path: Path) -> None:
    tasks = read_tasks(
        [write(tmp_path / "a.jsonl", CHOICES, {**CHOICES, "query": "a dog"}), write(tmp_path / "b.jsonl", WORDS)]
    )
    file, tokenizer, counting = tmp_path / "answers.jsonl", byte_tokenizer(), Counting(llama)
    whole = zero_shot(counting, tokenizer, tasks, cache=file)
    lines = file.read_text().splitlines()
    assert len(lines) == 4  # whose they are, and three items
    all_of_it, counting.read = counting.read, 0
    file.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed while it wrote
    assert zero_shot(counting, tokenizer, tasks, cache=file) == whole
    assert 0 < counting.read < all_of_it
    counting.read = 0
    assert zero_shot(counting, tokenizer, tasks, cache=file) == whole
    assert counting.read == 0
    with torch.no_grad():
        next(llama.parameters())[0, 0] += 1
    try:
        with pytest.raises(DataError, match="another model"):
            zero_shot(counting, tokenizer, tasks, cache=file)
    finally:
        with torch.no_grad():
            next(llama.parameters())[0, 0] -= 1
    file.write_text("not JSON\n")
    with pytest.raises(DataError, match="no file of answers"):
        zero_shot(counting, tokenizer, tasks, cache=file)


def test_an_item_that_cannot_be_answered_is_named_by_file_and_line(llama: nn.Module, tmp_path: Path) -> None:
    good, odd = json.dumps(CHOICES), json.dumps({**CHOICES, "choices": [" yes", " " + "n" * 50]})
    path = tmp_path / "odd.jsonl"
    path.write_text(f"{good}\n\n{odd}\n{good}\n")
    tasks = read_tasks([write(tmp_path / "fine.jsonl", WORDS), path])
    with pytest.raises(DataError) as refused:
        zero_shot(llama, byte_tokenizer(), tasks)
    said = str(refused.value)
    assert "51 tokens, the model 24 positions: ' nnn" in said
    assert f"where: {path}, line 3\n" in said
    assert "shorter, or leave the item out" in said
    assert all(len(line) < 200 for line in said.splitlines())
    assert tasks[1].items[0] == tasks[1].items[2], "where an item stands is no part of it"
    unwritten = Task("by hand", (Item(("a",), ("b" * 50,), None),), 1)
    with pytest.raises(DataError, match="where: task by hand, item "):
        zero_shot(llama, byte_tokenizer(), [unwritten])
    begun = Task("begun", (Item(("",), ("b",), None, "begun.jsonl, line 7"),), 1)
    with pytest.raises(DataError, match=r"(?s)no token to begin with.*begun.jsonl, line 7"):
        zero_shot(llama, byte_tokenizer(eos=False), [begun])


def test_models_are_told_apart_by_every_number_and_by_what_computes_with_them(llama: nn.Module) -> None:
    digest = weights_digest(llama)
    assert weights_digest(copy.deepcopy(llama)) == digest
    for part in (
        llama.get_parameter("model.layers.1.mlp.down_proj.weight"),
        llama.get_buffer("model.rotary_emb.inv_freq"),
    ):
        other = copy.deepcopy(llama)
        found = dict((*other.named_parameters(), *other.named_buffers()))
        (name,) = [n for n, t in (*llama.named_parameters(), *llama.named_buffers()) if t is part]
        found[name].data.flatten()[-1] += 1e-3
        assert weights_digest(other) != digest
    other = copy.deepcopy(llama)
    other.config.rms_norm_eps = 1e-3  # type: ignore[union-attr]
    assert weights_digest(other) != digest
    other.config.rms_norm_eps = llama.config.rms_norm_eps  # type: ignore[union-attr]
    other.config._name_or_path = "elsewhere"  # type: ignore[union-attr]
    assert weights_digest(other) == digest


def test_models_that_cannot_answer(llama: nn.Module) -> None:
    task = Task("t", (read_one(CHOICES),), 1)
    with pytest.raises(ShearError, match="no tokenizer"):
        zero_shot(llama, None, [task])
    broken = LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "num_hidden_layers": 1}))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(ShearError, match="not finite"):
        zero_shot(broken, byte_tokenizer(), [task])


rows = st.lists(st.booleans(), min_size=4, max_size=30)


@given(before=rows, other=rows)
@settings(max_examples=25)
def test_a_model_keeps_all_of_itself(before: list[bool], other: list[bool]) -> None:
    tasks, chance = {"a": [True, *before], "b": [True, *other]}, {"a": 0.0, "b": 0.0}
    same = kept(tasks, tasks, chance, draws=50)
    assert same.raw == same.above_chance == 1.0
    assert same.raw_interval == pytest.approx((1.0, 1.0))


def test_kept_by_hand() -> None:
    """Means 0.75 and 0.5 where blind choice has 0.25: two thirds of the score, half of what is above chance."""
    before, after = {"a": [True, True, True, False]}, {"a": [True, True, False, False]}
    found = kept(before, after, {"a": 0.25})
    assert found.raw == pytest.approx(2 / 3)
    assert found.above_chance == pytest.approx(0.5)
    assert found.raw_interval[0] <= found.raw <= found.raw_interval[1]
    with pytest.raises(DataError, match="other items"):
        kept(before, {"a": [True]}, {"a": 0.25})
    with pytest.raises(DataError, match="blind choice"):
        kept(before, after, {"a": 0.75})


def test_draws_in_which_the_dense_model_is_no_better_than_blind_choice_say_nothing() -> None:
    """Its mean is near chance, so that many draws fall below it, where a share of what is above has no meaning."""
    before, after = {"a": [True, True, False, False, False]}, {"a": [True, False, False, False, False]}
    found = kept(before, after, {"a": 0.25})
    low, high = found.above_chance_interval
    assert math.isfinite(low) and low <= found.above_chance <= high
    assert high <= 1.0  # what is kept of a model that is better nowhere; draws below chance would turn the sign


def harness_tasks(folder: Path, shared: Path) -> list[Task]:
    """Real tasks, and choices that begin without a blank, and with and without one."""
    bare = {"query": "Who sat on the mat?\n", "choices": ["dog", "The cat", "a very old man"], "gold": 1}
    mixed = {"query": "Who saw a dog?\n", "choices": [" Lily", "Tom and Lily", " the big old cat"], "gold": 0}
    files = [write(folder / "bare.jsonl", bare, bare | {"gold": 2}, bare | {"query": "Who ran?\n"})]
    files.append(write(folder / "mixed.jsonl", mixed, mixed | {"gold": 1}))
    return read_tasks([shared / "data" / "mc", *files], limit=6)


def test_lm_evaluation_harness_agrees_item_by_item(
    stories: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own verdicts and means, not only log-probabilities that we judge by."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install shearfx[lm-eval]")
    from shearfx.zero_shot.harness import harness_zero_shot

    loaded = load_model(str(stories))
    tasks = harness_tasks(tmp_path, shared)
    said: dict[str, Any] = {}
    evaluate = lm_eval.simple_evaluate

    def listened(*given: Any, **more: Any) -> Any:
        said.update(evaluate(*given, **more))
        return said

    monkeypatch.setattr(lm_eval, "simple_evaluate", listened)
    with pytest.raises(ShearError, match="no tokenizer"):
        harness_zero_shot(loaded.module, None, tasks)
    ours = zero_shot(loaded.module, loaded.tokenizer, tasks)
    theirs = harness_zero_shot(loaded.module, loaded.tokenizer, tasks)
    assert [r.name for r in ours] == [task.name for task in tasks]

    compared = set()
    for result in ours:
        summary, samples = said["results"][result.name], said["samples"][result.name]
        verdicts = {sample["doc_id"]: sample for sample in samples}
        for metric, right in (("acc", result.right), ("acc_norm", result.right_norm)):
            if f"{metric},none" in summary:
                compared.add((result.name, metric))
                assert summary[f"{metric},none"] == pytest.approx(getattr(result, metric), abs=1e-12)  # a mean
                assert tuple(verdicts[n][metric] for n in range(result.items)) == right
        if result.perplexity is not None:
            compared.add((result.name, "perplexity"))
            # float32 on both sides, texts batched and padded otherwise
            assert summary["perplexity,none"] == pytest.approx(result.perplexity, rel=1e-3)
    chosen = {r.name for r in ours if r.acc_norm is not None}
    # contexts of winogrande are chosen: the harness would divide by their length; it counts a blank that only some have
    normed = chosen - {"winogrande", "mixed"}
    assert {"hellaswag", "piqa", "bare"} <= normed
    assert {name for name, metric in compared if metric == "acc"} == {task.name for task in tasks}
    assert {name for name, metric in compared if metric == "acc_norm"} == normed
    assert {name for name, metric in compared if metric == "perplexity"} == {task.name for task in tasks} - chosen

    def decided(result: TaskResult) -> Any:
        return result.name, result.right, result.right_norm, result.acc, result.acc_norm, result.acc_norm_stderr

    assert list(map(decided, ours)) == list(map(decided, theirs))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.perplexity is None) == (other.perplexity is None)
        assert (one.perplexity or 0) == pytest.approx(other.perplexity or 0, rel=1e-3)


def test_through_the_harness_an_odd_item_is_named_too(stories: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install shearfx[lm-eval]")
    from shearfx.zero_shot.harness import harness_zero_shot

    loaded = load_model(str(stories))
    path = write(tmp_path / "odd.jsonl", CHOICES, {**CHOICES, "choices": [" yes", " n" * 600]})
    with pytest.raises(DataError, match=r"(?s)the model 512 positions.*odd.jsonl, line 2"):
        harness_zero_shot(loaded.module, loaded.tokenizer, read_tasks([path]))
