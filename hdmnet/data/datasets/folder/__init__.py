"""A user's own pictures and masks in a folder."""
