"""The steps of `bench.bringup` on one component: functions of the workload that return figures by name.

Each runs in a process of its own, so CUDA is initialised where it is used and gone afterwards.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from typing import Any

import numpy as np
import torch

from bench.bringup_workload import GIB, Workload, batch, free_gib, peak_gib
from learners.rl.scored_parts import flatten_parts


def machine(workload: Workload) -> dict[str, Any]:
    from importlib.metadata import version

    figures: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for package in ("ray", "deepspeed", "transformers"):
        figures[package] = version(package)
    if workload.device == "cuda":
        from learners.peak_flops import peak_flops

        figures["GPUs"] = torch.cuda.device_count()
        figures["GPU"] = torch.cuda.get_device_name()
        free, total = torch.cuda.mem_get_info()
        figures["memory, GiB"], figures["free, GiB"] = total / GIB, free / GIB
        figures["peak known, TFLOP/s"] = (peak_flops() or 0.0) / 1e12
    import vllm

    figures["vllm"] = vllm.__version__
    return figures


def start_bare_engine(workload: Workload, **options: Any) -> Any:
    """vLLM alone, with the settings that a rollout actor gives it."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    settings: dict[str, Any] = {
        "model": str(workload.model),
        "dtype": workload.dtype,
        "max_model_len": workload.context,
        "max_num_seqs": 256,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }
    if workload.device == "cuda":
        settings["gpu_memory_utilization"] = 0.5
    else:
        settings |= {"kv_cache_memory_bytes": 2**27, "enforce_eager": True, "enable_chunked_prefill": False}
    return LLM(**settings, **options)


def sample(engine: Any, workload: Workload) -> tuple[list[tuple[int, ...]], float]:
    """All responses of one batch, each of the same length, and the seconds."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    rng = np.random.default_rng(0)
    requests, settings = [], []
    for prompt in range(workload.prompts):
        tokens = rng.integers(10, 500, 32).tolist()
        for response in range(workload.responses):
            requests.append(TokensPrompt(prompt_token_ids=tokens))
            settings.append(
                SamplingParams(
                    seed=prompt * workload.responses + response,
                    max_tokens=workload.max_response_tokens,
                    ignore_eos=True,
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                )
            )
    started = time.perf_counter()
    outputs = engine.generate(requests, settings, use_tqdm=False)
    seconds = time.perf_counter() - started
    return [tuple(output.outputs[0].token_ids) for output in outputs], seconds


def engine(workload: Workload) -> dict[str, Any]:
    started = time.perf_counter()
    bare = start_bare_engine(workload)
    start_s = time.perf_counter() - started
    sample(bare, workload)  # kernels are built
    rates = []
    for _ in range(3):
        responses, seconds = sample(bare, workload)
        rates.append(sum(map(len, responses)) / seconds)
    return {"start, s": start_s, "sequences": len(responses), "tokens/s": statistics.median(rates)}


def sleep(workload: Workload) -> dict[str, Any]:
    """On a CPU the calls are made in their order and free nothing."""
    is_cuda = workload.device == "cuda"
    bare = start_bare_engine(workload, **({"enable_sleep_mode": True} if is_cuda else {}))
    before, _ = sample(bare, workload)
    figures: dict[str, Any] = {}
    for level in (1, 2):
        free = free_gib(workload)
        started = time.perf_counter()
        bare.sleep(level=level)
        slept = time.perf_counter()
        figures[f"level {level}: freed, GiB"] = free_gib(workload) - free
        figures[f"level {level}: to sleep, s"] = slept - started
        started = time.perf_counter()
        bare.wake_up(tags=["weights"])
        figures[f"level {level}: to wake the weights, s"] = time.perf_counter() - started
        started = time.perf_counter()
        bare.wake_up(tags=["kv_cache"])
        figures[f"level {level}: to wake the cache, s"] = time.perf_counter() - started
        if level == 1:
            after, _ = sample(bare, workload)
            figures["same tokens after level 1"] = after == before
            if after != before:
                raise RuntimeError("the engine samples other tokens after it has slept")
    return figures


def loop(workload: Workload) -> dict[str, Any]:
    """The passes of a GRPO iteration in plain torch: log-probabilities of all tokens, then forward and
    backward of four minibatches with a step of AdamW after each."""
    from learners.models import load_policy

    policy = load_policy(workload.model).to(workload.device, getattr(torch, workload.dtype))
    policy.gradient_checkpointing_enable()
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=workload.device == "cuda")
    samples = batch(workload).samples
    tokens_BT = torch.from_numpy(samples.tokens_N.reshape(samples.size, -1)).long().to(workload.device)
    rows = max(1, workload.micro_batch_tokens // tokens_BT.shape[1])
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.no_grad():
            for micro_RT in tokens_BT.split(rows):
                next_token_loss(policy, micro_RT)
        for minibatch_BT in tokens_BT.chunk(4):
            for micro_RT in minibatch_BT.split(rows):
                next_token_loss(policy, micro_RT).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if workload.device == "cuda":
            torch.cuda.synchronize()
        rates.append(tokens_BT.numel() / (time.perf_counter() - started))
    return {"tokens/s": statistics.median(rates[1:]), "memory at most, GiB": peak_gib(workload)}


def next_token_loss(policy: torch.nn.Module, tokens_RT: torch.Tensor) -> torch.Tensor:
    logits_RTV = policy(input_ids=tokens_RT, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits_RTV.flatten(0, 1), tokens_RT[:, 1:].flatten())


def learner(workload: Workload) -> dict[str, Any]:
    from actors.learner import LearnerActor
    from learners.config import LearnerConfig, ModelConfig
    from learners.rl.config import PPOConfig

    settings = LearnerConfig(
        ranks=1,
        threads=torch.get_num_threads(),
        gpus=float(workload.device == "cuda"),
        micro_batch_tokens=workload.micro_batch_tokens,
    )
    model = ModelConfig(path=str(workload.model), context=workload.context, gradient_checkpointing=True)
    ppo = PPOConfig(
        advantage="grpo",
        dtype=workload.dtype,  # type: ignore[arg-type]
        prompts=workload.prompts,
        responses=workload.responses,
        max_response_tokens=workload.max_response_tokens,
        epochs=1,
        minibatches=4,
        kl_coef=0.0,
    )
    actor = LearnerActor(0, settings, model)
    actor.join(*actor.open_rendezvous())
    actor.start_ppo(workload.model, None, ppo, None, 0)
    part = batch(workload)
    rates = []
    for version in range(4):
        metrics, seconds, _ = actor.ppo_update(version, 0.0, *flatten_parts([part]))
        rates.append(metrics["tokens"] / seconds)
    rate = statistics.median(rates[1:])
    flops, peak = actor.flops_per_token()
    figures: dict[str, Any] = {"tokens/s": rate, "memory at most, GiB": peak_gib(workload)}
    if peak:
        # Kaplan et al. 2020: the pass before the update takes a third of a training step.
        figures["utilization"] = rate * flops * 4 / 3 / peak
    return figures | moved(actor, workload)


def moved(actor: Any, workload: Workload) -> dict[str, Any]:
    """The learner offloaded and reloaded, twice: host memory is pinned the first time."""
    figures: dict[str, Any] = {}
    before = digest(actor)
    for turn in ("first", "second"):
        free = free_gib(workload)
        started = time.perf_counter()
        actor.offload("all")
        away = time.perf_counter()
        figures[f"offload, {turn} time, s"] = away - started
        figures["offload frees, GiB"] = free_gib(workload) - free
        started = time.perf_counter()
        actor.reload("all")
        figures[f"reload, {turn} time, s"] = time.perf_counter() - started
    if digest(actor) != before:
        raise RuntimeError("the learner's weights are others after they were offloaded")
    figures["same bits after reload"] = True
    return figures


def digest(actor: Any) -> str:
    found = hashlib.sha256()
    for engine_ in actor.task.engines.values():
        for name, weight in engine_.named_weights():
            found.update(name.encode())
            found.update(weight.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()
