"""The folder of a run that begins: what is refused, what --force removes, and what stays."""

import pytest
from helpers.folders import place, tree

from pipeline.errors import RunError, UsageError
from pipeline.storage.locks import LockedError
from trainer.distributed.env import DistEnv
from trainer.runs import output, run_folder
from trainer.runs.records import Validation


def claim(folder, **options):
    with output.new_lock(folder) as lock:
        output.claim(folder, lock, DistEnv(), **options)


@pytest.fixture
def run(tmp_path, tiny_recipe, tiny_dataset):
    """Folder of a run with all its files, and some of others."""
    folder = tmp_path / "run"
    run_folder.create(folder, tiny_recipe, tiny_dataset, Validation(), DistEnv())
    for name in ("metrics.jsonl", "status.json", "last.pt", "best.pt", "step-00000010.pt", "report.html"):
        place(folder / name)
    place(folder / "tensorboard" / "events.out.tfevents.1")
    return folder


@pytest.mark.parametrize("foreign", [(), ("notes.txt", "tensorboard/mine", "stepwise.pt")])
def test_force_replaces_a_run_but_no_file_of_others(run, foreign):
    before = tree(run)
    with pytest.raises(UsageError, match=r"already holds files.*--resume.*--force.*--out"):
        claim(run)
    assert tree(run) == before
    for name in foreign:
        place(run / name)
    claim(run, force=True)
    assert tree(run).keys() == set(foreign)
    assert (run / "tensorboard").exists() == bool(foreign)


@pytest.mark.parametrize("name", ["thesis.tex", "run.json", ".work/plan.json", "last.pt"])
def test_a_folder_of_others_is_refused_and_stays(tmp_path, name):
    place(tmp_path / "run" / name, b'{"name": "an app"}')
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(UsageError, match=r"already holds files; choose another --out"):
            claim(tmp_path / "run", force=force)
    with pytest.raises(UsageError, match="already holds files"):
        claim(tmp_path / "run" / name)
    with pytest.raises(RunError, match="below"):
        claim(tmp_path / "run" / name / "below")
    assert tree(tmp_path) == before


def test_a_folder_in_the_way_is_named_and_stays(run):
    (run / "best.pt").unlink()
    mine = place(run / "best.pt" / "mine")
    before = tree(run)
    with pytest.raises(UsageError, match=r"best\.pt: is in the way"):
        claim(run, force=True)
    assert tree(run) == before
    assert mine.exists()


def test_a_living_run_is_not_replaced_unless_taken_over(run):
    with output.new_lock(run) as lock:
        output.resume(run, lock, DistEnv(), print)
        with pytest.raises(LockedError):
            claim(run, force=True)
        claim(run, force=True, take_over=True)
    assert tree(run) == {}
