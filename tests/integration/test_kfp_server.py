"""The API server that the cluster commands are tested against does refuse what kfp's models do not know."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from kfp_server import KubeflowState, serving

RUN = {"display_name": "a", "experiment_id": "e", "runtime_config": {"parameters": {"any": [1]}}}


def send(path: str, body: Any = None) -> int:
    state = KubeflowState()
    with serving(state) as host:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(host + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            status = error.code
    assert bool(state.violations) == (status == 400)
    return status


@pytest.mark.parametrize(
    "wrong",
    [
        {"job_name": "a"},
        {"display_name": 5},
        {"state": "DONE"},
        {"created_at": True},
        {"runtime_config": {"params": {}}},
        {"runtime_config": []},
        {"pipeline_version_reference": {"pipeline_id": 1}},
        {"state_history": [{"when": "now"}]},
    ],
)
def test_a_body_that_the_model_does_not_know_is_refused(wrong: dict[str, Any]) -> None:
    assert send("/apis/v2beta1/runs", RUN) == 404  # the experiment; the body is right
    assert send("/apis/v2beta1/runs", RUN | wrong) == 400


def test_a_query_that_the_method_does_not_know_is_refused() -> None:
    assert send("/apis/v2beta1/runs?namespace=a&page_size=5") == 200
    assert send("/apis/v2beta1/runs?resource_reference_key.id=a") == 400


def test_a_filter_that_the_model_does_not_know_is_refused() -> None:
    right = '{"predicates":[{"operation":"EQUALS","key":"display_name","string_value":"a"}]}'
    assert send(f"/apis/v2beta1/runs?filter={urllib.request.quote(right)}") == 200
    for wrong in (right.replace("EQUALS", "IS"), right.replace("string_value", "text")):
        assert send(f"/apis/v2beta1/runs?filter={urllib.request.quote(wrong)}") == 400


def test_a_path_of_the_old_api_is_not_there() -> None:
    assert send("/apis/v1beta1/runs") == 404
