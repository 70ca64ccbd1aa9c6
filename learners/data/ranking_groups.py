"""From rankings to the training data of the reward model and of DPO: groups of one prompt, whose
different responses are encoded once.

Called by the stages reward and dpo. One group is one element of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from learners.data.conversations import InvalidRow, Messages, as_messages
from learners.data.datasets import RankingData
from learners.data.encoding import choose_threshold
from learners.data.preference_levels import MarginFrom, preference_levels
from learners.data.records import RankingRecord
from learners.data.response_encoder import Encode, ResponseEncoder
from learners.data.samples import offsets_of
from learners.data.sources import DatasetReader, SourceRow
from learners.data.split import linked_positions, prompt_positions, split_position
from learners.data.turn_tokens import encode_prompt, encode_response

# As many responses as Ouyang et al. 2022 (arXiv:2203.02155, section 3.5) had ranked at most.
MAX_GROUP_SIZE = 9

OracleScore = Callable[[RankingRecord, str, bool], float | None]
"""(record, response, whether it ended) -> what the response is truly worth; None where that is
not known."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class RankingDetails:
    """What else than prompt, responses and ranks is taken from a ranking."""

    margin_from: MarginFrom = "rank"
    """What its levels are made from."""
    weight: Callable[[RankingRecord], float] = lambda record: 1.0
    """How much it counts in the loss."""
    tag: Callable[[RankingRecord], str] = lambda record: ""
    """What accuracies are told apart by."""
    encode: Encode = encode_response
    """Makes the tokens of a prompt and a response."""


PLAIN = RankingDetails()


def encode_rankings(
    rows: Sequence[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    reader: DatasetReader,
    validation_share: float = 0.1,
    oracle_score: OracleScore | None = None,
    details: RankingDetails = PLAIN,
) -> RankingData:
    """Rankings grouped by prompt: each different response to it is encoded once, whoever ranked
    it and in whatever combination.

    A prompt with more than MAX_GROUP_SIZE different responses makes several groups, so that
    elements of a batch stay of one size and one epoch trains on all of them. Groups of one prompt
    are on one side of every split, and so are the rankings of one value of `data.split_key`;
    rankings that would be on both sides are left out and counted as "dropped_by_split". Raises
    UserError if that leaves fewer than two prompts to divide."""
    rankings: list[_Ranking] = []
    encoder = ResponseEncoder(tokenizer, details.encode)
    # One object for equal sequences: a response may be in many pairs.
    same: dict[TokenIds, TokenIds] = {}
    for source_row in rows:
        sequences = _encode_responses(source_row, encoder, context, reader)
        if sequences is None:
            continue
        sequences = [same.setdefault(sequence, sequence) for sequence in sequences]
        record: RankingRecord = source_row.record
        if not _has_preference(sequences, record.ranks):
            reader.leave_out("no_preference")
            continue
        try:
            levels = preference_levels(record, details.margin_from)
        except InvalidRow as error:
            reader.leave_out_invalid(source_row.where, error)
            continue
        rankings.append(_Ranking(record, record.split_text, reader.split_value(record), sequences, levels))
    rankings, validation_prompts = _split(rankings, validation_share, reader)
    groups = _group_by_prompt(rankings, oracle_score, details)
    prompt_lengths = [len(encode_prompt(tokenizer, group.prompt)) for group in groups]
    prompts = [ranking.split_text for ranking in rankings]
    owners = [ranking.owner for ranking in rankings]
    position_of = linked_positions(prompts, owners)
    fold_position_G = np.array([position_of[group.split_text] for group in groups], dtype=np.float64)
    is_validation_G = np.array([group.split_text in validation_prompts for group in groups], dtype=bool)
    return _as_arrays(groups, fold_position_G, is_validation_G, prompt_lengths)


def _has_preference(sequences: Sequence[TokenIds], ranks: Sequence[int]) -> bool:
    """Whether one sequence is better than another, different one; not where all are tied, or alike (in
    the file, or since they were cut)."""
    # With two sequences and two ranks, some two differ in both.
    return len(set(sequences)) > 1 and len(set(ranks)) > 1


@dataclass
class _Ranking:
    """A ranking that fits the context, with the two items that decide its side."""

    record: RankingRecord
    split_text: str
    """The prompt as `learners.data.split` takes it. Prompts that differ only in case and white space
    are different groups, but go together: else the model would be validated on what it was
    trained on."""
    owner: str | None
    """Value of `data.split_key`."""
    sequences: list[TokenIds]
    """Prompt and response, for each response."""
    levels: list[float]
    """Of each response, by `preference_levels`."""


def _split(rankings: list[_Ranking], share: float, reader: DatasetReader) -> tuple[list[_Ranking], set[str]]:
    """(rankings that are kept, prompts that are held out), as `learners.data.split` describes."""
    prompts = [ranking.split_text for ranking in rankings]
    owners = [ranking.owner for ranking in rankings]
    position_of = prompt_positions(prompts, owners)
    positions = [position_of[prompt] for prompt in prompts]
    threshold = choose_threshold(positions, share, "prompts with rankings", reader)
    kept: list[_Ranking] = []
    validation_prompts: set[str] = set()
    for ranking, position in zip(rankings, positions, strict=True):
        if position < threshold:
            validation_prompts.add(ranking.split_text)
            # Its owner is trained on, with other prompts. Without an owner it goes with its prompt.
            # Some ranking of the prompt is kept: that by the owner with the smallest position.
            if ranking.owner is not None and split_position(ranking.owner) >= threshold:
                reader.leave_out("dropped_by_split")
                continue
        kept.append(ranking)
    return kept, validation_prompts


def _group_by_prompt(
    rankings: list[_Ranking], oracle_score: OracleScore | None, details: RankingDetails
) -> list[_Group]:
    groups: list[_Group] = []
    open_group: dict[tuple[str, str], _Group] = {}
    for ranking in rankings:
        record, sequences = ranking.record, ranking.sequences
        key = (str(as_messages(record.prompt)), details.tag(record))
        group = open_group.get(key)
        if group is None or not group.has_room_for(sequences):
            group = open_group[key] = _Group(ranking.split_text, record.prompt, key[1])
            groups.append(group)
        group.add_ranking(sequences, _oracle_scores(record, oracle_score), record.ranks)
        group.levels.append(ranking.levels)
        group.weights.append(details.weight(record))
    return groups


class _Group:
    """Different sequences (prompt and response) of one prompt, and rankings of them."""

    def __init__(self, split_text: str, prompt: str | Messages, tag: str) -> None:
        self.tag = tag
        self.levels: list[list[float]] = []
        """Of each ranking."""
        self.weights: list[float] = []
        self.split_text = split_text
        """What `learners.data.split` decides by."""
        self.prompt = prompt
        self.index: dict[TokenIds, int] = {}
        """Sequences, and the index of each in the group."""
        self.oracle_scores: list[float | None] = []
        self.rankings: list[tuple[list[int], list[int]]] = []
        """(members, ranks) of each ranking; members are indices of sequences."""

    def has_room_for(self, sequences: Sequence[TokenIds]) -> bool:
        return len(self.index.keys() | set(sequences)) <= MAX_GROUP_SIZE

    def add_ranking(
        self, sequences: Sequence[TokenIds], scores: Sequence[float | None], ranks: list[int]
    ) -> None:
        members = []
        for sequence, score in zip(sequences, scores, strict=True):
            if sequence not in self.index:
                self.index[sequence] = len(self.index)
                self.oracle_scores.append(None)
            member = self.index[sequence]
            # Another ranking of the same response may know the truth where the first did not.
            if self.oracle_scores[member] is None:
                self.oracle_scores[member] = score
            members.append(member)
        self.rankings.append((members, ranks))

    def oracle_ranks(self) -> list[int]:
        """Rank of each sequence by its score (1 best, equal for ties); 0 where the score is not
        known."""
        best_first = sorted({score for score in self.oracle_scores if score is not None}, reverse=True)
        ranks = []
        for score in self.oracle_scores:
            ranks.append(0 if score is None else best_first.index(score) + 1)
        return ranks


def _encode_responses(
    source_row: SourceRow, encoder: ResponseEncoder, context: int, reader: DatasetReader
) -> list[TokenIds] | None:
    """Prompt and response in tokens, for each response of a ranking; None if `data.overlong`
    leaves the ranking out, or it is skipped since it cannot be encoded."""
    record = source_row.record
    sequences = []
    for response, ended in zip(record.responses, record.ended, strict=True):
        encode = partial(encoder.encode, record.prompt, ended)
        try:
            fitted = reader.fit_to_length(source_row.where, response, encode, context)
        except InvalidRow as error:
            reader.leave_out_invalid(source_row.where, error)
            return None
        # Without one of its responses a ranking would say something else.
        if fitted is None:
            return None
        sequences.append(tuple(fitted[1]))
    return sequences


def _oracle_scores(record: RankingRecord, oracle_score: OracleScore | None) -> list[float | None]:
    """What each response is truly worth, as far as that is known."""
    if oracle_score is None:
        return [None] * len(record.responses)
    scores = []
    for response, ended in zip(record.responses, record.ended, strict=True):
        scores.append(oracle_score(record, response, ended))
    return scores


def _as_arrays(
    groups: list[_Group],
    fold_position_G: np.ndarray,
    is_validation_G: np.ndarray,
    prompt_lengths: list[int],
) -> RankingData:
    sequences: list[np.ndarray] = []
    oracle_ranks: list[int] = []
    members_M: list[int] = []
    ranks_M: list[int] = []
    levels_M: list[float] = []
    weights_Q: list[float] = []
    members_per_ranking: list[int] = []
    ranking_groups_Q: list[int] = []
    for g, group in enumerate(groups):
        for sequence in group.index:
            sequences.append(np.array(sequence, dtype=np.int32))
        oracle_ranks += group.oracle_ranks()
        for members, ranks in group.rankings:
            members_M += members
            ranks_M += ranks
            members_per_ranking.append(len(members))
        levels_M += [level for levels in group.levels for level in levels]
        weights_Q += group.weights
        for _ in group.rankings:
            ranking_groups_Q.append(g)
    return RankingData(
        tokens_N=np.concatenate(sequences),
        offsets=offsets_of([len(sequence) for sequence in sequences]),
        groups=offsets_of([len(group.index) for group in groups]),
        members_M=np.array(members_M, dtype=np.int32),
        ranks_M=np.array(ranks_M, dtype=np.int32),
        levels_M=np.array(levels_M, dtype=np.float32),
        weights_Q=np.array(weights_Q, dtype=np.float32),
        tags_G=np.array([group.tag for group in groups]),
        ranking_offsets=offsets_of(members_per_ranking),
        ranking_groups_Q=np.array(ranking_groups_Q, dtype=np.int32),
        oracle_ranks=np.array(oracle_ranks, dtype=np.int32),
        fold_position_G=fold_position_G,
        is_validation_G=is_validation_G,
        prompt_lengths_G=np.array(prompt_lengths, dtype=np.int32),
    )
