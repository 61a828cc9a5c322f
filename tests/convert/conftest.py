from tests.training.conftest import corpus  # noqa: F401
