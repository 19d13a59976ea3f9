"""Files, signals, processes and memory of a run: nothing here knows of networks or data."""
