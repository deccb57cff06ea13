"""Fixtures that several files here share."""

from tests.integration.account_product import product

__all__ = ["product"]
