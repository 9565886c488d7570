"""What is decided: drift and cost models, queue policies, the vLLM plug-in and its benchmarks.

It is imported inside a serving process, so it loads in milliseconds and knows nothing of
`quietcore.agent`, `quietcore.probes` or their dependencies.
"""
