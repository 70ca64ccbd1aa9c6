"""Folders that look like published models of the hub: their config.json, a small tokenizer, no weights."""

import json

from safetensors.numpy import save_file

from tests.learners.tokenizers_of_models import chatml

PARAMETERS = {"0.5B": 494_032_768, "7B": 7_615_616_512, "32B": 32_763_876_352, "72B": 72_706_203_648}
"""Of the Qwen2.5 family, as their model cards and checkpoints have them."""

SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
    "72B": (8192, 29_568, 80, 64, 8, 152_064, False),
}
"""Width, MLP width, layers, heads, key-value heads, vocabulary, tied embeddings."""


def write_model(folder, size):
    """Writes the folder of a Qwen2.5 model as `hero plan` opens it; returns its path."""
    folder.mkdir(parents=True)
    width, mlp_width, layers, heads, kv_heads, vocabulary, tied = SHAPES[size]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    chatml().save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return folder


def write_problems(root):
    """The two files of GSM8K with two problems each, under a data root."""
    folder = root / "gsm8k"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        rows = [{"question": f"What is {i} + {i}, {name}?", "answer": f"It is #### {2 * i}"} for i in (1, 2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
