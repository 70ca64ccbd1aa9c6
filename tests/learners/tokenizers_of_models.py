"""Tokenizers as published models have them, small: byte-level BPE with ChatML, and SentencePiece; and what
is learned of a conversation with them."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from learners.data.turn_tokens import encode_conversation
from tests.learners.fixtures import talk

HELLO = talk("Hi", "Hello.")["messages"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' -}}{%- if m['role'] == 'assistant' -%}"
    "{%- generation -%}{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}{%- else -%}"
    "{{- m['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
SPECIAL = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<answer>", "</answer>"]
TEXTS = ["\n\n", "\n\nHello.\n\n", "user\nassistant\nsystem\n", "It is 4. Hello there."] * 9


def chatml(template=CHATML, end="<|im_end|>", pad="<|pad|>", special=SPECIAL):
    """A byte-level BPE tokenizer that, as those of Llama 3 and Qwen, makes one token of two line breaks."""
    core = Tokenizer(models.BPE())
    pattern = Regex(r"\s*[\r\n]+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    others = [token for token in special if token not in (end, pad)]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=others,
        chat_template=template,
    )


def sentencepiece():
    """As Llama 2's: a space mark is put before every piece of text, also before an answer alone."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<pad>"])}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in ("▁", "\n", *"Paris.C<|usertan>", "▁P", "Pa", "▁Pa", "is", "▁is"):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", "P"), ("P", "a"), ("▁P", "a"), ("i", "s"), ("▁", "is")]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **special)


def learned(tokenizer, messages):
    """The learned part of a conversation, with | where tokens that are not learned stand between."""
    ids, mask = encode_conversation(tokenizer, messages)
    parts, was = [], False
    for token, flag in zip(ids, mask, strict=True):
        if flag and not was:
            parts.append([])
        if flag:
            parts[-1].append(token)
        was = flag
    return "|".join(tokenizer.decode(part) for part in parts)
