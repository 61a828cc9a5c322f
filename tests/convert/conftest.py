from tests.training.conftest import compiled_programs, corpus  # noqa: F401
