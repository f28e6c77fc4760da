"""The command line: verbs as thin Invoke tasks, their output, questions and exit codes."""
