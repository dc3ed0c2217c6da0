"""The DALI graph that decodes and augments, its segments, and what went wrong in a batch."""
