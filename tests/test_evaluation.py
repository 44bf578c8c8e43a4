"""Perplexity and speed: against a plain computation, against known figures, and with input that cannot be judged."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.errors import ShearError
from shearfx.evaluation import _windows, generation_speed, parameter_count, perplexity
from shearfx.models import LoadedModel, load_model


@pytest.fixture(scope="module")
def llama(stories: Path) -> LoadedModel:
    return load_model(str(stories))


@pytest.fixture(scope="module")
def documents(shared: Path) -> list[str]:
    lines = (shared / "data" / "text" / "tinystories_valid.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@given(
    ids=st.lists(st.integers(10, 99), max_size=40),
    bos=st.sampled_from([[], [1]]),
    length=st.integers(2, 12),
    data=st.data(),
)
def test_windows_predict_every_token_once(ids: list[int], bos: list[int], length: int, data: st.DataObject) -> None:
    body = length - len(bos)
    stride = data.draw(st.integers(1, body))
    windows = list(_windows(ids, bos, length, stride))
    predicted = [token for window, first in windows for token in window[first:]]
    assert all(len(window) <= length and first >= 1 for window, first in windows)
    assert all(window[: len(bos)] == bos for window, _ in windows)
    if bos:
        assert predicted == ids
    elif stride < body:
        assert predicted == ids[1:]
    else:  # nothing to predict a window's first token from
        assert predicted == [token for position, token in enumerate(ids) if position % length]


def test_perplexity_of_real_stories_is_the_known_one(llama: LoadedModel, documents: list[str]) -> None:
    tokenizer = llama.tokenizer
    assert tokenizer is not None
    starts = [tokenizer(document, add_special_tokens=False).input_ids[:511] for document in documents]
    result = perplexity(llama.module, tokenizer, [str(tokenizer.decode(ids)) for ids in starts], batch_size=8)
    assert (result.tokens, result.documents, result.bos, result.dtype) == (73_897, 195, True, "float32")
    assert result.sequence_length == 512  # as many as the model has positions
    # a loop over the stories, written apart from this code, gave 4.515888; the rest is float32 rounding
    assert result.value == pytest.approx(4.51589, abs=1e-4)


def test_perplexity_is_that_of_a_plain_computation(llama: LoadedModel, documents: list[str]) -> None:
    tokenizer = llama.tokenizer
    assert tokenizer is not None
    total, count = 0.0, 0
    for document in documents[:3]:
        ids = tokenizer(document, add_special_tokens=False).input_ids
        for begin in range(0, len(ids), 99):
            window = torch.tensor([[1, *ids[begin : begin + 99]]])
            with torch.no_grad():
                log_probabilities = llama.module(input_ids=window).logits.double().log_softmax(-1)
            total -= float(log_probabilities[0, :-1].gather(1, window[0, 1:, None]).sum())
            count += window.shape[1] - 1
    results = [
        perplexity(llama.module, tokenizer, documents[:3], sequence_length=100, batch_size=batch) for batch in (1, 4)
    ]
    assert [result.tokens for result in results] == [count, count]
    # log-probabilities are rounded to float32 (1e-7); batching changes the order of sums within the model
    assert [result.value for result in results] == pytest.approx([math.exp(total / count)] * 2, rel=1e-5)


def test_more_context_helps(llama: LoadedModel, documents: list[str]) -> None:
    apart, overlapping = (
        perplexity(llama.module, llama.tokenizer, documents[:5], sequence_length=64, stride=stride)
        for stride in (None, 16)
    )
    assert apart.tokens == overlapping.tokens
    assert overlapping.value < apart.value


def test_progress_reaches_the_end_and_the_mode_is_restored(llama: LoadedModel, documents: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    module = llama.module
    module.train()
    module.get_submodule("model.layers.0").eval()
    try:
        perplexity(module, llama.tokenizer, documents[:4], progress=lambda done, total: seen.append((done, total)))
        assert module.training
        assert not module.get_submodule("model.layers.0").training
    finally:
        module.eval()
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


class _Constant(nn.Module):
    """Gives every token the same logits: perplexity is the size of the vocabulary, whatever the text."""

    def __init__(self, fill: float = 0.0, form: str = "dict") -> None:
        super().__init__()
        self.fill = nn.Parameter(torch.tensor(fill))
        self.form = form

    def forward(self, input_ids: Tensor) -> object:
        logits = self.fill.expand(*input_ids.shape, 512)
        forms = {"dict": {"logits": logits}, "tuple": (logits,), "tensor": logits, "flat": logits[0]}
        return forms[self.form]


@pytest.mark.parametrize("form", ["dict", "tuple", "tensor"])
def test_a_model_that_knows_nothing_has_its_vocabulary_as_perplexity(llama: LoadedModel, form: str) -> None:
    result = perplexity(_Constant(form=form), llama.tokenizer, "Once upon a time there was a tree.")
    assert result.value == pytest.approx(512, rel=1e-6)
    assert result.sequence_length == 1024  # a model that does not say how many positions it has


def test_the_text_of_a_result_states_its_conditions(llama: LoadedModel) -> None:
    text = str(perplexity(_Constant(), llama.tokenizer, "Once upon a time", sequence_length=32))
    assert all(part in text for part in ("512.00", "sequence 32", "stride 31", "BOS", "stories260k", "float32"))


@pytest.mark.parametrize(
    ("model", "text", "options", "says"),
    [
        (_Constant(), "", {}, "no token to predict"),
        (_Constant(), [], {}, "no token to predict"),
        (_Constant(), "some text", {"max_tokens": 0}, "no token to predict"),
        (_Constant(), "some text", {"sequence_length": 1}, "out of range"),
        (_Constant(), "some text", {"stride": 0}, "out of range"),
        (_Constant(), "some text", {"sequence_length": 8, "stride": 8}, "out of range"),
        (_Constant(), "some text", {"batch_size": 0}, "out of range"),
        (_Constant(math.nan), "some text", {}, "not finite"),
        (_Constant(form="flat"), "some text", {}, "not logits"),
        (nn.Linear(2, 2), "some text", {}, "cannot be called"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    llama: LoadedModel, model: nn.Module, text: str | list[str], options: dict[str, int], says: str
) -> None:
    with pytest.raises(ShearError, match=says):
        perplexity(
            model,
            llama.tokenizer,
            text,
            sequence_length=options.get("sequence_length"),
            stride=options.get("stride"),
            max_tokens=options.get("max_tokens"),
            batch_size=options.get("batch_size", 1),
        )


def test_lengths_beyond_the_model_and_missing_tokenizers_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(ShearError, match=r"(?s)513 is out of range.*2 to 512"):
        perplexity(llama.module, llama.tokenizer, "some text", sequence_length=513)
    with pytest.raises(ShearError, match="no tokenizer"):
        perplexity(llama.module, None, "some text")
    with pytest.raises(ShearError, match="out of range"):
        generation_speed(llama.module, prompt_tokens=500, new_tokens=32)
    with pytest.raises(ShearError, match="no generate"):
        generation_speed(nn.Linear(2, 2))


def test_ids_outside_the_vocabulary_are_refused(llama: LoadedModel) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 5)

        def forward(self, input_ids: Tensor) -> Tensor:
            output: Tensor = self.table(input_ids)
            return output

    with pytest.raises(ShearError, match="cannot be called on these token ids"):
        perplexity(Small(), llama.tokenizer, "some text")


@pytest.mark.parametrize("prompt", [None, "Once upon a time"])
def test_speed_is_measured_over_all_asked_tokens(llama: LoadedModel, prompt: str | None) -> None:
    speed = generation_speed(
        llama.module, llama.tokenizer, prompt=prompt, prompt_tokens=24, new_tokens=6, batch_size=2, repeats=2
    )
    assert speed.prefill > 0
    assert speed.decode > 0
    assert (speed.prompt_tokens, speed.new_tokens, speed.batch_size, speed.repeats) == (24, 6, 2, 2)
    assert (speed.dtype, speed.device) == ("float32", "cpu")


def test_parameters_count_once(llama: LoadedModel) -> None:
    count = parameter_count(llama.module)
    assert count.total == sum({p.data_ptr(): p.numel() for p in llama.module.parameters()}.values())
    assert count.total - count.without_embeddings == 512 * 64  # tied: the output layer is the embedding
