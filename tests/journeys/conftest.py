"""The whole product, as the tests of this folder use it."""

from tests.cluster_fixtures import cluster, product

__all__ = ["cluster", "product"]
