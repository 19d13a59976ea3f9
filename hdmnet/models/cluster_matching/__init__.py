"""Clusters of a query's dense features, matched with the supports in both directions; nothing is trained."""
