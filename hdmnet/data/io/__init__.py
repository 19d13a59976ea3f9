"""Pictures and masks in files."""
