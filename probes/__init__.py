"""What is seen: the BPF programs, their loaders, CUDA libraries, NVML and /proc.

Only the typed readings leave this room. It imports neither `quietcore.agent` nor
`quietcore.scheduler`; dependencies point from the agent to here.
"""
