"""--help and --version import nothing heavy, and the commands have exactly the options listed here."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli.bench import main as bench
from cli.common.commands import heading_of
from cli.eval import main as evaluate
from cli.export import main as export
from cli.plan import main as plan
from cli.predict import main as predict
from cli.prep import main as prep
from cli.show import main as show
from cli.train import main as train

HEAVY = ("torch", "nvidia.dali", "numpy", "cv2", "PIL", "rich.progress", "msgspec", "matplotlib", "jinja2")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\n"
        "from cli import bench, eval, export, plan, predict, prep, show, train\n"
        "for module in (bench, eval, export, plan, predict, prep, show, train):\n"
        "    for argument in ('--help', '--version'):\n"
        "        try:\n"
        "            module.main([argument])\n"
        "        except SystemExit as end:\n"
        "            assert not end.code\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


JOB = (
    "data --recipe --set --gpus --cpus --cuda-graphs --backend --decode-device --threads "
    "--loader-workers --no-mmap --cache --cache-limit"
)

# The options of every command; the test fails where one is added or removed by accident.
OPTIONS = {
    "prep shard": (
        prep.commands["shard"],
        "source out --layout --splits --labels --path-column --label-column --classes --val-fraction "
        "--max-per-class --fraction --seed --size --quality --keep-aspect --keep-original --exif-rotate "
        "--drop-duplicates --shard-samples --max-megapixels --max-bad --workers --engine --ray-address "
        "--task --scratch --force --take-over --dry-run",
    ),
    "prep finish": (prep.commands["finish"], "out --max-bad --take-over"),
    "prep verify": (prep.commands["verify"], "out --fast --workers"),
    "prep stats": (prep.commands["stats"], "out --size --max-megapixels --max-bad --workers --json"),
    "prep info": (prep.commands["info"], "out --preview --noise --json --force"),
    "prep demo": (prep.commands["demo"], "out --images --seed --force"),
    "show kernels": (show.commands["kernels"], "run -o --weights --force"),
    "show predictions": (
        show.commands["predictions"],
        "run -o --weights --count --only-errors --seed --split --classes-by --precision --data --force",
    ),
    "show neighbors": (
        show.commands["neighbors"],
        "run images -o --weights --count --queries --among --seed --split --batch-size --precision --data "
        "--force",
    ),
    "show curves": (show.commands["curves"], "runs -o --force"),
    "show confusion": (
        show.commands["confusion"],
        "run -o --weights --split --classes-by --batch-size --precision --data --force",
    ),
    "show maps": (
        show.commands["maps"],
        "run image -o --weights --layer --channels --split --precision --data --force",
    ),
    "show saliency": (
        show.commands["saliency"],
        "run image -o --weights --class --split --precision --data --force",
    ),
    "show report": (show.commands["report"], "run -o --skip --seed --precision --data --force"),
    "predict": (
        predict,
        "checkpoint images --ensemble --top --views --batch-size --precision --exif-rotate --format -o "
        "--force --weights",
    ),
    "export": (export, "checkpoint out --force --weights"),
    "train": (
        train,
        f"{JOB} -o --resume --resume-required --max-restarts --hang-timeout --val-every-steps --patience "
        "--no-val --checkpoint-steps "
        "--checkpoint-minutes --keep-checkpoints --max-steps --synthetic --overfit-batch --profile "
        "--tensorboard --verify-shards --force --take-over",
    ),
    "plan": (plan, JOB),
    "bench": (bench, JOB),
    "show status": (show.commands["status"], "run --json"),
    "eval": (
        evaluate,
        "checkpoints --data --views --ensemble-weights --weights --split --classes-by --real-labels --labels "
        "--arch --preprocessing --per-class --table --json --predictions --confusion --submission --devkit "
        "--kernels --batch-size --precision --gpus --cpus --backend --decode-device --threads "
        "--loader-workers --no-mmap --cache --cache-limit --force",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_these(name):
    command, expected = OPTIONS[name]
    found = [parameter.opts[0] for parameter in command.params if parameter.name != "version"]
    assert sorted(found) == sorted(expected.split())


@pytest.mark.parametrize(("name", "group"), [("prep", prep), ("show", show)])
def test_the_groups_have_these_commands(name, group):
    assert {f"{name} {command}" for command in group.commands} == {n for n in OPTIONS if f"{name} " in n}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_one_kind_stand_under_one_heading(name):
    command, _ = OPTIONS[name]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "version"]
    if len(options) > 7:
        assert [p.name for p in options if heading_of(p) == "Options"] == []
    lines = CliRunner().invoke(command, ["--help"]).output.splitlines()
    headings = [line for line in lines if line[:1] != " " and line.endswith(":")]
    assert sorted(headings) == sorted({f"{heading_of(p)}:" for p in options} | {"Options:"})


@pytest.mark.parametrize(
    ("group", "name", "words", "completed"),
    [
        (train, "train", "--max", ["plain,--max-restarts", "plain,--max-steps"]),
        (train, "train", "--recipe s", ["plain,small", "plain,source"]),
        (train, "train", "sha", ["file,sha"]),
        (evaluate, "eval", "--views f", ["plain,full-resize"]),
        (show, "show", "sal", ["plain,saliency"]),
        (show, "show", "status --j", ["plain,--json"]),
    ],
)
def test_shells_complete_options_and_their_values(group, name, words, completed):
    variables = {
        f"_ALEXNET_{name.upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": f"alexnet-{name} {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(group, [], prog_name=f"alexnet-{name}", env=variables)
    assert result.output.splitlines() == completed


@pytest.mark.parametrize("group", [prep, show])
def test_a_groups_help_cuts_no_sentence(group):
    assert "..." not in CliRunner().invoke(group, ["--help"]).output.split("Commands:")[1]


@pytest.mark.parametrize(
    "command",
    [command for command, _ in OPTIONS.values()] + [prep, show],
)
def test_every_option_explains_itself(command):
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0
