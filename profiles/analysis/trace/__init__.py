"""Traces of torch.profiler: read as a stream, and what they say. No torch."""
