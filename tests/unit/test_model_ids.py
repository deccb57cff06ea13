"""Which ids a model may have."""

import pytest

from shared.model_ids import check_model_id


@pytest.mark.parametrize(
    "model_id", ["demo", "inferbase/demo", "Qwen/Qwen2.5-3B-Instruct", "a/b/c", "health", "health/x", "Ünï/modèle"]
)
def test_usual_ids_are_taken(model_id: str) -> None:
    assert check_model_id(model_id) == model_id


CONTROL = ["a\nb", "a\x00b", "a\x7fb", "a b", "a\u202eb"]
IN_URLS = ["a/health", "a?b", "a#b", "a%2Fb", "/a", "a/", "a//b", "../a", "a/./b", "a\\b"]


@pytest.mark.parametrize("model_id", ["", "a" * 201, "a{b", "a}b", *CONTROL, *IN_URLS])
def test_ids_that_would_break_a_url_or_a_redis_name_are_refused(model_id: str) -> None:
    with pytest.raises(ValueError, match="a model id"):
        check_model_id(model_id)
