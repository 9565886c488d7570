"""quietcore: measure, name and remove CPU interference on the CUDA launch path of LLM servers."""

__version__ = "0.1.0"
