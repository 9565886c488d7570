"""``python -m quietcore.agent.cli``."""

from quietcore.agent.cli import main

main()
