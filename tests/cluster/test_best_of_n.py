"""Which response to a prompt becomes a demonstration."""

import numpy as np

from cluster.stages.best_of_n import choose
from learners.data.samples import Samples, offsets_of


def samples_of(prompt_ids, ended):
    count = len(prompt_ids)
    return Samples(
        tokens_N=np.zeros(2 * count, dtype=np.int32),
        offsets=offsets_of([2] * count),
        prompt_lengths_B=np.ones(count, dtype=np.int32),
        logprobs_N=np.zeros(2 * count, dtype=np.float32),
        versions_N=np.zeros(2 * count, dtype=np.int32),
        prompt_ids_B=np.array(prompt_ids),
        ended_B=np.array(ended),
    )


def test_the_best_response_that_ended_is_chosen():
    rows = {
        1: {"prompt": [{"role": "user", "content": "q"}]},
        0: {"prompt": "p", "user": "u", "messages": "kept out"},
    }
    samples = samples_of([0, 0, 1, 1, 1], [True, True, True, True, False])
    scores_B = np.array([3.0, 2.0, 0.5, 1.5, 9.0], dtype=np.float32)
    # The best of prompt 1 was cut, and that of prompt 0 is empty.
    chosen = choose(samples, scores_B, [" ", "e", "a", "b", "c"], rows, "user")
    assert [line["messages"][-1]["content"] for line in chosen] == ["b", "e"]
    assert chosen[0]["messages"][0] == {"role": "user", "content": "q"}
    assert [line["reward"] for line in chosen] == [1.5, 2.0]
    assert chosen[0]["rewards"] == [0.5, 1.5, 9.0]
    assert "user" not in chosen[0]
    assert chosen[1]["user"] == "u"


def test_a_prompt_without_a_whole_response_is_left_out():
    samples = samples_of([0, 0], [False, False])
    assert choose(samples, np.zeros(2), ["a", "b"], {0: {"prompt": "p"}}, None) == []
