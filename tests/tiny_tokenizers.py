"""Tokenizers built on the spot: one token a byte, so that a test can say what the tokens of a text must be."""

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, bos: bool = False, eos: bool = True, chat: str | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose tokens are bytes; with ``bos`` it begins texts with ``<s>``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", "<pad>"])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>" if eos else None, pad_token="<pad>"
    )
    tokenizer.chat_template = chat
    return tokenizer
