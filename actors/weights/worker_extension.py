"""Imported by every vLLM worker before its weight-transfer backend is made, to make the backend known.

The workers of tensor parallelism are processes of their own. They know the backend by the entry point of
`vllm.general_plugins` where the package is installed; where it is only on the path, as in a job with a
working directory, they import this module by the name in `worker_extension_cls`.
"""

from actors.weights.vllm import register

register()


class WorkerExtension:
    """Added by vLLM to the bases of its worker class; has no methods."""
