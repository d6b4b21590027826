"""The tiny models and a live server on them, made once."""

import pytest

from tests.serve import material
from tests.serve.browsing import Watched, chromium


@pytest.fixture(scope="session")
def served_models(tmp_path_factory):
    """A decoder, an adapter over it, and an encoder."""
    folder = tmp_path_factory.mktemp("served")
    return {
        "tiny": material.decoder(folder / "decoder"),
        "tiny:other": material.adapter(folder / "adapter"),
        "vectors": material.encoder(folder / "encoder"),
    }


@pytest.fixture(scope="module")
def server(served_models, tmp_path_factory):
    """A server without keys."""
    with material.live(tmp_path_factory.mktemp("store"), served_models) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    """Chromium; the tests skip where it is not installed."""
    with chromium() as made:
        yield made


@pytest.fixture
def watched(browser, live):
    """A page of the live server; at its end nothing was wrong in its console, and nothing was asked of others."""
    made = Watched(browser, live.url)
    made.page.goto(live.url)
    yield made
    assert (made.faults, made.outside) == ([], [])
    made.page.close()
