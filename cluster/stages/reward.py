"""Stage 4: the reward model, from rankings; a prompt with all its pairs is one element of a
batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from cluster.context import Context
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.stages.labeler_weights import labeler_weights
from cluster.stages.reward_accuracy import tag_of, write_accuracies
from cluster.stages.supervised import SupervisedStage, train_to_end
from common.errors import UserError
from common.files import read_json, write_json
from common.run_paths import TrainingInputPaths
from learners.data.conversations import InvalidRow, Messages
from learners.data.datasets import RankingData, TokenData
from learners.data.ranking_groups import OracleScore, RankingDetails, encode_rankings
from learners.data.records import RankingRecord
from learners.data.reward_tokenizer import own_tokenizer
from learners.data.samples import offsets_of
from learners.data.split import EmptySideError, assign_folds
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_rendered, encode_response
from learners.supervised.agreement import PairAgreement, described


def run(context: Context) -> dict[str, Any]:
    config, paths = context.config, context.run.paths
    folder = context.run.stage("reward")
    policy = context.run.model("sft")
    settings = config.reward_model
    of_policy = load_tokenizer(policy, config.model)
    own = own_tokenizer(settings.path, of_policy, settings.chat_template)
    encode = partial(_encode, context, own or of_policy)
    weights = _labeler_weights(context)
    details = RankingDetails(
        settings.margin_from,
        weight=partial(_weight_of, weights),
        encode=encode_rendered if own else encode_response,
    )
    data = encode(details)
    # First, since it needs the learners too. Its counts are stored, so a later interruption does not
    # repeat it.
    folds: dict[str, float] = {}
    if config.reward_model.folds > 1:
        folds = cross_validate(context, policy, data)
    data.save(paths.ranking_tokens)
    learners = context.fleets.learners()
    stage = SupervisedStage(
        context,
        "reward",
        learners,
        total_steps=learners.start_reward_model(policy, config.reward_model, folder, config.seed),
        checkpoint_every=config.reward_model.checkpoint_every,
        inputs=[policy, *context.run.data("rankings")],
        final_metrics=partial(_final_metrics, context, learners, folds, own),
    )
    results = stage.run()
    if settings.accuracy_by:
        tagged = encode(replace(details, tag=partial(tag_of, settings.accuracy_by)))
        write_accuracies(context, policy, tagged)
    return {**results, **{f"labeler_weight/{name}": weight for name, weight in weights.items()}}


def _labeler_weights(context: Context) -> dict[str, float]:
    if context.config.reward_model.labeler_weights == "none":
        return {}
    rows, _ = context.read("rankings")
    return labeler_weights(row.record for row in rows)


def _weight_of(weights: dict[str, float], record: RankingRecord) -> float:
    return weights.get(record.labeler or "", 1.0)


def _encode(context: Context, tokenizer: PreTrainedTokenizerBase, details: RankingDetails) -> RankingData:
    """The rankings in the tokens of the reward model."""
    rows, reader = context.read("rankings")
    return encode_rankings(
        rows,
        tokenizer,
        context.config.model.context,
        reader,
        context.config.reward_model.validation_share,
        oracle_score(context),
        details,
    )


def _final_metrics(
    context: Context, learners: LearnerFleet, folds: dict[str, float], own: PreTrainedTokenizerBase | None
) -> dict[str, float]:
    """Centers the rewards on the demonstrations, where there are any; the rates of the folds
    beside that. `own` is the tokenizer of a reward model that reads other tokens than the policy."""
    demonstrations = context.run.paths.demonstration_tokens
    if not demonstrations.exists():
        return folds
    if own is not None:
        demonstrations = TrainingInputPaths(context.run.stage("reward")).demonstration_tokens
        _encode_demonstrations(context, own).save(demonstrations)
    return {**folds, "bias": learners.center_rewards(demonstrations)}


def _encode_demonstrations(context: Context, tokenizer: PreTrainedTokenizerBase) -> TokenData:
    """The demonstrations as the reward model reads responses; nothing of them is learned."""
    rows, reader = context.read("demonstrations")
    sequences = []
    for where, record in rows:
        try:
            prompt, response = record.messages[:-1], record.messages[-1]["content"]
            encode = partial(_encode_ended, tokenizer, prompt)
            fitted = reader.fit_to_length(where, response, encode, context.config.model.context)
        except InvalidRow as error:
            reader.leave_out_invalid(where, error)
            continue
        if fitted is not None:
            sequences.append(np.array(fitted[1], dtype=np.int32))
    tokens_N = np.concatenate(sequences)
    return TokenData(
        tokens_N=tokens_N,
        offsets=offsets_of([len(sequence) for sequence in sequences]),
        loss_mask_N=np.zeros(len(tokens_N), dtype=bool),
        is_validation_S=np.zeros(len(sequences), dtype=bool),
    )


def _encode_ended(tokenizer: PreTrainedTokenizerBase, prompt: Messages, response: str) -> list[int]:
    return encode_rendered(tokenizer, prompt, response, ended=True)


def cross_validate(context: Context, policy: Path, data: RankingData) -> dict[str, float]:
    """Trains one model for each fold on all other folds. Returns the rates over the held-out
    prompts of all folds together, and the accuracy of each fold. Folds that an interrupted run
    has finished are kept.

    Raises UserError for fewer prompts than folds, where prompts that share a value of
    `data.split_key`, directly or through other prompts, count as one.
    """
    config, paths = context.config.reward_model, context.run.paths
    learners = context.fleets.learners()
    try:
        fold_G = assign_folds(data.fold_position_G, config.folds)
    except EmptySideError as error:
        raise UserError(
            f"reward_model.folds={config.folds}: {error}; prompts that share a value of data.split_key, "
            "directly or through other prompts, are one item"
        ) from None
    counts = read_json(paths.fold_counts) or []
    for fold in range(len(counts), config.folds):
        replace(data, is_validation_G=fold_G == fold).save(paths.fold_rankings)
        total = learners.start_reward_model(policy, config, paths.folds, context.config.seed)
        name = f"fold {fold + 1}/{config.folds}"
        train_to_end(learners, total, name)
        agreement: PairAgreement = learners.pair_agreement()
        # After every fold, so that an interrupted run does not train it again.
        counts.append(agreement.to_array().tolist())
        write_json(paths.fold_counts, counts)
        print(f"{name}: {described(agreement.rates())}", flush=True)
    # Over all prompts together and not the mean of the folds: their pairs differ in number.
    agreements = [PairAgreement.from_array(np.array(fold_counts)) for fold_counts in counts]
    rates = {f"folds/{name}": rate for name, rate in PairAgreement.concat(agreements).rates().items()}
    for fold, agreement in enumerate(agreements):
        rates[f"folds/accuracy/{fold}"] = agreement.labelers.rate()
    return rates


def oracle_score(context: Context) -> OracleScore | None:
    """The judge as a score of responses, to measure accuracy against the truth; None without a
    judge."""
    judge = context.judge()
    if judge is None:
        return None
    return partial(_judge_response, judge)


def _judge_response(
    judge: Callable[..., dict[str, Any]], record: RankingRecord, response: str, ended: bool
) -> float | None:
    """None for a ranking without the row of its prompt file, such as one that people gave."""
    if not isinstance(record.row, dict):
        return None
    score: float | None = judge(record.row, response, ended)["score"]
    return score
