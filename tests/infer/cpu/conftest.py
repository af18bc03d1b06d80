"""The compiled step, once a session; without a compiler its tests are skipped."""

import pytest

from m27.infer.cpu import BuildError, binding


@pytest.fixture(scope="session")
def library():
    try:
        return binding.library()
    except BuildError as error:
        pytest.skip(str(error))
