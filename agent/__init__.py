"""What is done: the command line, targets, attribution, export, pinning and reports.

The agent turns the readings of `quietcore.probes` into a verdict and acts on it. It imports
`quietcore.probes` and the shared page of `quietcore.scheduler`; neither of them imports it.
"""
