"""Commands under other users, homes, launchers' variables and folders."""

import pytest
from helpers.conditions import READ_ONLY_HOME, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("home", [None, READ_ONLY_HOME])
def test_without_a_home_a_dataset_is_described(open_dataset, home):
    done = run("alexnet-prep", "info", open_dataset, unprivileged=True, variables={"HOME": home})
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"dataset   {open_dataset}")
