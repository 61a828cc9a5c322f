from tests.training.conftest import corpus

__all__ = ["corpus"]
