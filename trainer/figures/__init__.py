"""The paper's figures and a run's, as PNG or SVG."""
