"""The embedded data: patterned silhouettes before busy backgrounds."""
