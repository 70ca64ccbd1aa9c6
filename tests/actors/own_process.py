"""Runs what needs an engine in a process of its own: a refused payload must not end the test process."""

import multiprocessing


def in_own_process(exercise, folder):
    """What `exercise(folder, queue)` puts into the queue."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=exercise, args=(folder, queue))
    process.start()
    while queue.empty():
        process.join(0.5)
        assert process.is_alive() or not queue.empty(), "the engine's process failed; see its traceback"
    results = queue.get()
    process.join(60)
    return results
