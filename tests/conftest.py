import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    """Tests are small: one thread is faster, and does not fight with whatever else runs here."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def without_shape_checks():
    """What a user without jaxtyping's import hook meets: our own messages, not jaxtyping's."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
