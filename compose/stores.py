"""The two embedded servers, under one door: what `inferbase up`, the tests and the bench open."""

from compose.ports import free_port
from compose.postgres import Postgres, open_postgres
from compose.valkey import Valkey, open_valkey

__all__ = ["Postgres", "Valkey", "free_port", "open_postgres", "open_valkey"]
