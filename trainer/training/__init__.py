"""The training run: loop, step, precision, setup, options, dry run, benchmark."""
