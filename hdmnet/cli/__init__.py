"""The command line: composing, refusing, and the processes of a job."""
