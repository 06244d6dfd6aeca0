"""One server for the tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from pard2 import Engine
from pard2.models.draft import Draft
from pard2.models.target import Target
from running import Running, new_draft, new_target, running, wait_until


@pytest.fixture(scope="session")
def target() -> Target:
    """Not to be changed, nor decoded with while a server does: models are of one thread."""
    return new_target()


@pytest.fixture(scope="session")
def draft(target: Target) -> Draft:
    return new_draft(target)


@pytest.fixture(scope="session")
def plain() -> Engine:
    """What every answer must be equal to: plain decoding by models of its own."""
    return Engine(new_target(), method="ar")


@pytest.fixture(scope="module")
def shared(target: Target, draft: Draft) -> Iterator[Running]:
    with running(Engine(target, draft, draft_tokens=4, max_batch=4)) as server:
        yield server


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server; whatever a test did, nothing may be left in it."""
    yield shared
    wait_until(shared.is_empty)
