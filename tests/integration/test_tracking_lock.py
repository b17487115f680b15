"""The lock at an MLflow server, with MLflow's own store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from whence.tracking.lock import Lock


def test_a_lock_that_is_given_up_while_mlflow_looks_up_who_has_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, look = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), SqlAlchemyStore.get_registered_model
    first, second = (Lock(client, "runs", "", lambda action: action()) for _ in range(2))
    holding = ExitStack()
    assert holding.enter_context(first.held())()

    def given_up_before(store: SqlAlchemyStore, name: str) -> Any:
        monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", look)
        holding.close()
        return look(store, name)

    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", given_up_before)
    with second.held() as is_held:
        assert is_held()
    assert not client.search_registered_models()
