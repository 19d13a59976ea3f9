"""One's own pictures and masks in a folder."""
