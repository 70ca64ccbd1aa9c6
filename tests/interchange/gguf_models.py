"""A GGUF file of a tiny model with random weights, by gguf's own writer and in llama.cpp's form."""

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, MLP = 2, 64, 4, 2, 16, 96


def vocabulary(special=SPECIAL):
    """(tokens, types, merges) of a byte-level vocabulary with a few merges."""
    bytes_of = list(bytes_to_unicode().values())
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "Ġ Ġ"]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*special, *bytes_of, *merged]
    control = gguf.TokenType.CONTROL
    types = [int(control)] * len(special) + [int(gguf.TokenType.NORMAL)] * (len(bytes_of) + len(merged))
    return tokens, types, merges


def write_gguf(path, seed=0, special=SPECIAL, template=CHATML, architecture="llama", skip=None, pre="smollm"):
    """The model; pad is the end token, as in many published files. `skip` leaves a tensor out."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    tokens, types, merges = vocabulary(special)
    writer.add_name("Tiny Random")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    end = tokens.index("<|im_end|>")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    if template:
        writer.add_chat_template(template)
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        layer = {
            "attn_norm": (WIDTH,),
            "attn_q": (HEADS * HEAD_WIDTH, WIDTH),
            "attn_k": (KV_HEADS * HEAD_WIDTH, WIDTH),
            "attn_v": (KV_HEADS * HEAD_WIDTH, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD_WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (MLP, WIDTH),
            "ffn_up": (MLP, WIDTH),
            "ffn_down": (WIDTH, MLP),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        if name == skip:
            continue
        values = rng.normal(0, 0.2, shape).astype(np.float32) + (len(shape) == 1)
        if "ffn" in name and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
