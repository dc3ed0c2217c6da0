"""The DALI backend: the graph that decodes and augments, pipelines per segment, and error diagnosis."""
