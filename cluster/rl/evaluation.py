"""Responses of a policy to held-out prompts, with rewards and the judge's measures.

Used by the stages ppo (every few iterations, and the best-of-N baseline) and evaluate. Waits for
rollout and scoring actors. Here P is the number of prompts, J the number of responses to each, C
the number of reward sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.prompt_group import PromptGroup
from actors.reward_config import RewardsConfig
from cluster.context import Context
from cluster.rl.reward_ensemble import DISAGREEMENT, combine, combined_models
from cluster.sampling_config import SOURCE
from common.errors import UserError
from common.random_streams import Stream, derived_seed, generator
from learners.data.episodes import EpisodeStatus
from learners.data.samples import Samples
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.transcripts import TRANSCRIPT, answer_texts, transcript
from learners.rl.episode_metrics import episode_metrics
from learners.rl.estimates import best_of_n, best_of_n_kl, pass_at_k

Answer = dict[str, Any]
"""One response: text, ended, reward (of each source too if there are several), and the judge's
measures. Of an episode also its status and its turns."""

STATUS = "status"


@dataclass(frozen=True)
class EvaluationPrompts:
    """Rows of a prompt file with their token ids."""

    rows: list[dict[str, Any]]
    tokens: list[list[int]]

    def select(self, indices: Sequence[int]) -> EvaluationPrompts:
        rows = [self.rows[index] for index in indices]
        return EvaluationPrompts(rows, [self.tokens[index] for index in indices])

    def sample(self, count: int, seed: int) -> EvaluationPrompts:
        """`count` prompts (or all if there are fewer), the same for the same seed."""
        order = generator(seed, Stream.EVALUATION_PROMPTS).permutation(len(self.rows))
        return self.select(order[:count].tolist())


@dataclass(frozen=True)
class JudgedResponses:
    """J responses to each of P prompts, prompt by prompt."""

    samples: Samples
    ref_logprobs_N: np.ndarray | None
    """None in a run without the reference policy."""
    answers: list[Answer]


def respond(context: Context, prompts: EvaluationPrompts, temperature: float, count: int) -> JudgedResponses:
    """Samples `count` responses to each prompt with the weights that the engines hold, and has
    them scored and judged."""
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy, context.config.model)
    rollouts = context.fleets.rollouts(policy)
    scorers = context.fleets.scorers(policy, context.run.reward_model())
    decoding, end = context.decoding("evaluate", temperature), end_token(tokenizer)
    groups = evaluation_groups(prompts, count, context.config.seed)
    if context.config.environment is not None:
        refs = rollouts.run_episodes(groups, decoding, end)
    else:
        seeds = [seed for group in groups for seed in group.seeds]
        refs = rollouts.generate(prompts.tokens, range(len(prompts.rows)), decoding, end, count, seeds)
    # References are scored as soon as they exist; the driver reads the samples meanwhile.
    # Temperature 1: log-probabilities of the reference policy are compared with those of the
    # policy itself.
    rows = dict(enumerate(prompts.rows))
    scored = [scorers.submit_score(index, ref, 1.0, rows) for index, ref in enumerate(refs)]
    samples = Samples.concat(rollouts.wait(refs, "generate"))
    scores = scorers.wait([scores_ref for scores_ref, _ in scored], "score")
    references = scorers.wait([ref_logprobs_ref for _, ref_logprobs_ref in scored], "score")
    raw_CB = np.concatenate([part.raw_CB for part in scores], axis=1)
    applies_CB = np.concatenate([part.applies_CB for part in scores], axis=1)
    rewards = reward_columns(raw_CB, applies_CB, context.config.rewards)
    texts = answer_texts(tokenizer, samples)
    judge, judge_source = context.judge(), context.config.evaluate.judge_source
    answers = []
    for b, text in enumerate(texts):
        ended = bool(samples.ended_B[b])
        answer = {"text": text, "ended": ended}
        for name, reward_B in rewards.items():
            answer[name] = finite_or_none(reward_B[b])
        if judge_source:
            answer["score"] = answer.pop(judge_source)
        if samples.episodes is not None:
            answer |= samples.episodes.infos_B[b]
            answer[STATUS] = EpisodeStatus(samples.episodes.status_B[b]).name.lower()
            answer[TRANSCRIPT] = transcript(tokenizer, samples, b)
        if judge:
            answer |= judge(prompts.rows[samples.prompt_ids_B[b]], text, ended)
        answers.append(answer)
    ref_logprobs_N = None
    if context.config.uses_reference:
        ref_logprobs_N = np.concatenate(references)
    return JudgedResponses(samples, ref_logprobs_N, answers)


def evaluation_groups(prompts: EvaluationPrompts, count: int, seed: int) -> list[PromptGroup]:
    """The prompts with `count` seeds each: the same in every evaluation, so that differences between policies
    are less noisy."""
    groups = []
    for index, (row, tokens) in enumerate(zip(prompts.rows, prompts.tokens, strict=True)):
        rng = generator(seed, Stream.EVALUATION_SEEDS, index)
        seeds = rng.integers(0, 2**31, size=count).tolist()
        environment_seed = derived_seed(seed, Stream.EVALUATION_ENVIRONMENTS, index)
        groups.append(PromptGroup(index, index, tokens, seeds, row, environment_seed))
    return groups


def reward_columns(
    raw_CB: np.ndarray, applies_CB: np.ndarray, config: RewardsConfig
) -> dict[str, np.ndarray]:
    """By name, for each response: the reward, which is the weighted sum of the raw scores (those of reward
    models combined, as `rewards.combine` says), and each source that is not the whole of it (nan where it
    does not apply). Neither clipped nor normalized, so that evaluations of different iterations
    compare."""
    combined = combined_models(config)
    summed = [c for c in config.counting if c not in combined]
    weights_C = np.array([config.sources[c].weight for c in summed])
    columns = {"reward": weights_C @ raw_CB[summed]}
    if combined:
        combined_B, disagreement_B = combine(raw_CB[combined], config)
        columns["reward"] = columns["reward"] + combined_B
        columns[f"{SOURCE}{DISAGREEMENT}"] = disagreement_B
    own_CB = np.where(applies_CB, raw_CB, np.nan)
    for c, name in config.separate_names.items():
        columns[f"{SOURCE}{name}"] = own_CB[c]
    return columns


def finite_or_none(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return float(value)


def judge_policy(
    context: Context, prompts: EvaluationPrompts, temperature: float
) -> tuple[dict[str, float], list[Answer]]:
    """(rates and means, first answer to each prompt) of the policy that the engines hold. Raises
    UserError if evaluate.pass_metric is not a measure of the judge."""
    config = context.config.evaluate
    count = 1  # greedy responses to one prompt are all equal
    if temperature:
        count = config.samples
    responses = respond(context, prompts, temperature, count)
    samples = responses.samples
    columns = answer_columns(responses.answers, count)
    rates = {name: float(np.nanmean(values_PJ)) for name, values_PJ in columns.items()}
    if samples.episodes is not None:
        of_episodes = episode_metrics(samples)
        rates |= {name: of_episodes[name] for name in of_episodes if name.startswith("episode/")}
    rates["length"] = float(samples.response_lengths_B.mean())
    rates["count"] = float(samples.size)
    if temperature == 1.0 and responses.ref_logprobs_N is not None:
        # The engine's log-probabilities are of the distribution sampled from, the reference's of
        # temperature 1.
        log_ratio_N = samples.logprobs_N - responses.ref_logprobs_N
        rates["kl"] = float(log_ratio_N[samples.response_mask_N].sum() / samples.size)
    if "score" in columns:
        scored_PJ = columns["score"]
        scored_PJ = scored_PJ[np.isfinite(scored_PJ).any(axis=1)]
        rates["score_error"] = standard_error(np.nanmean(scored_PJ, axis=1))
    if count > 1 and config.judge_function:
        if config.pass_metric not in columns:
            raise UserError(
                f"evaluate.pass_metric={config.pass_metric}: not a measure of {config.judge_function}, "
                f"which gives {', '.join(columns)}"
            )
        rates |= pass_rates(columns[config.pass_metric])
    return rates, responses.answers[::count]


def answer_columns(answers: Sequence[Answer], count: int) -> dict[str, np.ndarray]:
    """By name: rewards and the judge's measures as float64 (P, J) arrays, nan for an answer
    without the measure. Measures that no answer has are left out."""
    columns = {}
    # An episode may have no measures where another has some.
    for name in dict.fromkeys(name for answer in answers for name in answer):
        if name in ("text", STATUS, TRANSCRIPT):
            continue
        values = [answer.get(name) for answer in answers]
        if any(value is not None for value in values):
            columns[name] = np.array(values, dtype=float).reshape(-1, count)
    return columns


def standard_error(means_P: np.ndarray) -> float:
    """Of the mean over prompts; 0 if there is only one."""
    if len(means_P) < 2:
        return 0.0
    return float(means_P.std(ddof=1) / len(means_P) ** 0.5)


def pass_rates(measure_PJ: np.ndarray) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... and J, and mean@J. A response passes if its measure is at least
    1. Prompts with a response that has no measure (nan) are left out."""
    count = measure_PJ.shape[1]
    complete_P = ~np.isnan(measure_PJ).any(axis=1)
    passed_P = (measure_PJ[complete_P] >= 1).sum(axis=1)
    rates = {}
    for k in sorted({*powers_of_two(count), count}):
        estimates_P = [pass_at_k(int(passed), count, k) for passed in passed_P]
        rates[f"pass@{k}"] = float(np.mean(estimates_P))
    rates[f"mean@{count}"] = rates["pass@1"]
    return rates


def best_of_n_baseline(context: Context, prompts: EvaluationPrompts, count: int) -> list[dict[str, float]]:
    """Best of n = 1, 2, 4, ... up to `count` samples by the reward, with the weights that the
    engines hold: n, the analytic KL, and the mean reward and measures of the chosen response."""
    answers = respond(context, prompts, 1.0, count).answers
    columns = answer_columns(answers, count)
    baseline = []
    for n in powers_of_two(count):
        row: dict[str, float] = {"n": n, "kl": best_of_n_kl(n)}
        for name, values_PJ in columns.items():
            row[name] = best_of_n(columns["reward"], values_PJ, n)
        baseline.append(row)
    return baseline


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to and including `limit`."""
    return [2**exponent for exponent in range(limit.bit_length())]
