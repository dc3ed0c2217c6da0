"""An executor that runs tasks in the calling process, for tests that are not about processes."""


class InlineExecutor:
    """Runs one task after another, as they are asked for."""

    reports_progress = False

    def run(self, work, items, on_progress=None):
        """See `pipeline.executors.base.Executor.run`."""
        return (work(item) for item in items)


INLINE = InlineExecutor()
