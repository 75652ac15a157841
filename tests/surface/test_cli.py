"""The command line: overview, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from secateur import cli


def test_help_lists_every_command(capsys):
    assert cli.run(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in cli.COMMANDS)
    assert "Exit codes" in page


def test_help_takes_less_than_300_ms():
    """Of processor time, which other work on the machine does not lengthen."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "secateur", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "words", ["analyse FILE --tokens 16", "prune FILE OUT --what heads --ratio 0.25"]
)
def test_an_onnx_file_is_worked_on_without_torch(words, encoder_onnx, tmp_path):
    """Importing torch takes longer than all the rest."""
    paths = {"FILE": str(encoder_onnx), "OUT": str(tmp_path / "small.onnx")}
    arguments = [paths.get(word, word) for word in words.split()]
    program = f"""
import sys
from secateur import cli
assert cli.run({arguments!r}) == 0
assert "onnx_ir" in sys.modules
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_model_of_fewer_tokens_than_are_counted_says_how_to_go_on(encoder_onnx, capsys):
    assert cli.run(["analyse", str(encoder_onnx), "--tokens", "128"]) == 2
    told = capsys.readouterr().err
    assert "at 128 tokens" in told
    assert "--tokens N" in told


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name, capsys):
    assert cli.run([name, "--help"]) == 0
    assert f"secateur {name}" in capsys.readouterr().out


def test_an_unknown_command_ends_with_2(capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(["deplo"])
    assert left.value.code == 2
    assert "deploy" in capsys.readouterr().err


def test_an_unknown_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(["methods", "--jsn"])
    assert left.value.code == 2
    assert "--json" in capsys.readouterr().err


def test_an_error_is_told_in_parts_without_a_traceback(tmp_path, capsys):
    assert cli.run(["deploy", str(tmp_path / "none.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: no such recipe")
    assert "where:" in told
    assert "Traceback" not in told


def test_an_error_is_a_document_with_json(tmp_path, capsys):
    assert cli.run(["deploy", str(tmp_path / "none.yaml"), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2
    assert told["error"]["what"] == "no such recipe"


def test_schema_prints_json(capsys):
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"


def test_methods_say_what_a_selector_reads_and_costs(capsys):
    assert cli.run(["methods", "--json"]) == 0
    found = {m["name"]: m for m in json.loads(capsys.readouterr().out)["selector"]}
    assert found["divprune"]["kind"] == "greedy"
    assert found["divprune"]["signals"] == "hidden, valid"
    assert found["divprune"]["options"] == "faithful=False"
    assert all(m["cost"] and m["source"] and m["kind"] and m["signals"] for m in found.values())


def test_methods_name_their_sources(capsys):
    assert cli.run(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {m["name"] for m in found["selector"]} >= {"class_row", "column_mean"}
    assert {m["name"] for m in found["importance"]} >= {"l1", "l2", "random"}
    assert all(m["summary"] for items in found.values() for m in items)
