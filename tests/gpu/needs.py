"""What a test needs of its machine, as marks."""

import pytest
import torch


def needs_gpus(count):
    """The marker `gpu`, and a reason to skip where there are fewer."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = f"needs {count} CUDA device{'s' if count > 1 else ''}, this machine has {found or 'none'}"
    return [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.skipif(found < count, reason=reason)]
