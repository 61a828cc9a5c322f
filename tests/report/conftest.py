from tests.training.conftest import compiled_programs, corpus

__all__ = ["compiled_programs", "corpus"]
