"""A head that sees nothing but correlation maps."""
