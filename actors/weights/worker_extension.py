"""Imported by every vLLM worker before its weight-transfer backend is made, to make the backend known.

The workers of tensor parallelism are processes of their own. They know the backend by the entry point of
`vllm.general_plugins` where the package is installed; where it is only on the path, as in a job with a
working directory, they import this module by the name in `worker_extension_cls`.
"""

from typing import Any

import torch

from actors.weights.vllm import register

register()


class WorkerExtension:
    """Added by vLLM to the bases of its worker class."""

    model_runner: Any

    def clear_kv_cache(self) -> None:
        """Overwrites all keys and values with zeros, for an engine that computes those of its requests again.

        A block of the cache that is not full yet still holds what an earlier request left there. Attention
        gives it the weight zero, and zero times nan is nan: one version with weights that are nan would
        spoil answers of every version after it.
        """
        for layer in self.model_runner.kv_caches:
            for cache in [layer] if isinstance(layer, torch.Tensor) else layer:
                cache.zero_()
