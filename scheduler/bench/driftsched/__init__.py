"""``bench driftsched``: the experiment of DriftSched (arXiv 2606.02982), rebuilt from its description.

The requests are ours, made after the published recipe (`workload`); they are served in virtual time, in
static micro-batches as published (`static`) and with continuous batching by vLLM's scheduler (`continuous`).
"""
