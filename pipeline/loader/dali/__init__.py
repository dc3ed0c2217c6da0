"""The DALI backend: the graph that decodes and augments, and the pipeline that is fed."""
