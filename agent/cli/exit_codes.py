"""Exit codes of every command; docs/cli.md explains them to users."""

HEALTHY = 0
FOUND = 1
USAGE = 2
CANNOT_MEASURE = 3
INTERRUPTED = 130
