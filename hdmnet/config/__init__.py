"""From the files under conf/ to plain values and objects."""
