"""The smallest model in bfloat16, in a process that has multiplied nothing before."""

import subprocess
import sys

from learners.config import ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy

GENERATE = """
import sys
from actors.config import Decoding, RolloutConfig
from actors.vllm_engine import VLLMEngine
config = RolloutConfig(dtype="bfloat16", max_model_len=64, max_sequences=4, kv_cache_gib=0.1)
engine = VLLMEngine(sys.argv[1], config, seed=0)
requests = engine.add_responses([1, 2], [1, 2], Decoding(max_tokens=4), end_token=0)
print("responses", len(engine.finish(requests)))
"""


def test_engine_of_a_model_that_is_too_small_for_a_large_product(tmp_path):
    """With AMX the attention ended the process by an illegal instruction: nothing had asked for its tiles."""
    sizes = ModelConfig(layers=1, width=64, heads=2, kv_heads=2, vocab_size=320, context=64)
    tokenizer = train_tokenizer(["abc abd" * 50], 320)
    build_policy(sizes, tokenizer, seed=0).save_pretrained(tmp_path)
    command = [sys.executable, "-c", GENERATE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "responses 2" in done.stdout
