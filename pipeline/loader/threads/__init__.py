"""Decode and augment with a pool of threads: libjpeg-turbo and OpenCV."""
