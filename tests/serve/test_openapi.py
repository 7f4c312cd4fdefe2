"""What /openapi.json promises: our own errors instead of the framework's, streams, media types, and where a key is wanted."""

from __future__ import annotations

from typing import Any

from serving import scripted_model, served

from kiloq.serve.guard import Rules

KEY = "key-of-the-test"


def described(keys: bool) -> dict[str, Any]:
    rules = Rules(Rules.hashed([KEY])) if keys else None
    with served(scripted_model(), rules) as server:
        response = server.client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
        assert response.status_code == 200
        assert response.json() == server.client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
        return dict(response.json())


def shape_of_errors(operation: dict[str, Any], status: str) -> str:
    return str(operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]).rsplit("/", 1)[1]


def test_every_operation_tells_our_errors_and_none_the_frameworks() -> None:
    page = described(keys=False)
    assert {"Error", "DashScopeError"} <= set(page["components"]["schemas"])
    assert not {"HTTPValidationError", "ValidationError"} & set(page["components"]["schemas"])
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert set(operation["responses"]) == {"200", "4XX", "5XX"}
            want = "DashScopeError" if path.startswith("/api/v1/") else "Error"
            assert shape_of_errors(operation, "4XX") == shape_of_errors(operation, "5XX") == want, path


def test_streams_and_texts_have_their_own_media_types() -> None:
    paths = described(keys=False)["paths"]
    media = {
        path: set(operation["responses"]["200"]["content"]) for path in paths for operation in paths[path].values()
    }
    assert media["/metrics"] == {"text/plain"}
    streams = {path for path, types in media.items() if "text/event-stream" in types}
    assert streams == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/compatible-mode/v1/chat/completions",
        "/compatible-mode/v1/completions",
        "/api/v1/services/aigc/text-generation/generation",
    }


def test_a_key_is_wanted_everywhere_but_for_health_and_only_where_there_are_keys() -> None:
    paths = described(keys=True)["paths"]
    open_paths = {path for path in paths for operation in paths[path].values() if "security" not in operation}
    assert open_paths == {"/health", "/v1/health", "/ping"}
    page = described(keys=False)
    assert "securitySchemes" not in page["components"]
    assert all("security" not in operation for each in page["paths"].values() for operation in each.values())
