"""Programs that people have, against a server of ours: what each one checks is in clients/NAME_client.py.

Every client is another program in an environment of its own, made by benchmarks/clients.sh; without it its test skips.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.clients.running import CLIENTS, check_likelihoods, run_client, scripted_server, trained_server
from serving import Served
from support import default_model

import kiloq

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def scripted() -> Iterator[Served]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def trained() -> Iterator[Served]:
    with trained_server(kiloq.load(default_model())) as server:
        yield server


@pytest.mark.timeout(300)  # each takes seconds, lm_eval nearly a minute, which it spends with its own imports
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_finds_what_it_expects(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    client = CLIENTS[name]
    if client.absent is not None:
        pytest.skip(client.absent)
    for model in client.models:
        found = run_client(client, request.getfixturevalue(model), tmp_path / model)
        assert not found["failed"], "\n".join(f"{each}: {error}" for each, error in found["failed"].items())
        assert found["checks"], f"{client.program} has checked nothing with the {model} model"
        if found.get("likelihoods"):
            check_likelihoods(request.getfixturevalue(model).service.model, found["likelihoods"])
