"""Which ids a model may have, for the commands; told by `shared/model_ids.py`."""

from shared.model_ids import FORBIDDEN, MODEL_ID_CHARACTERS_MOST, check_model_id

__all__ = ["FORBIDDEN", "MODEL_ID_CHARACTERS_MOST", "check_model_id"]
