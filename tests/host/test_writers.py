"""Where a run's rows go."""

import csv
import json
import struct

import numpy as np
import pytest

import purerl
from purerl.host.report.log import Log, named
from purerl.host.report.writers import (
    CSVWriter,
    JSONLWriter,
    TensorBoardWriter,
    WandbWriter,
    make_writers,
)

CONFIG = {"algorithm": "a2c", "env": "CartPole-v1"}


def rows(step, value=1.5):
    return {
        "seed": np.arange(2),
        "step": np.full(2, step),
        "return": np.array([value, np.nan], np.float32),
    }


def test_csv_has_a_row_a_seed(tmp_path):
    writer = CSVWriter()
    writer.open(tmp_path, CONFIG, None)
    writer.write(rows(10))
    writer.write(rows(20, 0.1))
    writer.close()
    with (tmp_path / "evaluations.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in read] == [
        ("0", "10"),
        ("1", "10"),
        ("0", "20"),
        ("1", "20"),
    ]
    assert np.float32(read[2]["return"]) == np.float32(0.1)  # every bit


def test_jsonl_has_null_for_what_is_not_finite(tmp_path):
    writer = JSONLWriter()
    writer.open(tmp_path, CONFIG, None)
    writer.write(rows(10))
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"seed": 0, "step": 10, "return": 1.5},
        {"seed": 1, "step": 10, "return": None},
    ]


@pytest.mark.parametrize("kind", [CSVWriter, JSONLWriter])
def test_rows_after_the_checkpoint_are_forgotten(kind, tmp_path):
    """And a row that was not written to its end."""
    writer = kind()
    writer.open(tmp_path, CONFIG, None)
    for step in (10, 20, 30):
        writer.write(rows(step))
    path = tmp_path / writer.name
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:-2])
    again = kind()
    again.open(tmp_path, CONFIG, 20)
    again.write(rows(30))
    assert path.read_text() == whole
    kind().open(tmp_path, CONFIG, -1)  # it begins again, perhaps with other columns
    assert path.read_text() == ""


@pytest.mark.parametrize("kind", [CSVWriter, JSONLWriter])
def test_hyper_parameters_that_are_no_numbers(kind, tmp_path):
    """And have commas, when the rows are read again to go on."""
    swept = {"point": np.arange(2), "widths": np.fromiter([(8, 8), None], object)}
    swept |= {"activation": np.array(["tanh", "relu"])}
    writer = kind()
    writer.open(tmp_path, CONFIG, None)
    for step in (10, 20):
        writer.write(swept | rows(step))
    text = (tmp_path / writer.name).read_text()
    assert (
        '"(8, 8)",tanh' if kind is CSVWriter else '"widths": [8, 8], "activation": "tanh"'
    ) in text
    again = kind()
    again.open(tmp_path, CONFIG, 10)
    again.write(swept | rows(20))
    assert (tmp_path / writer.name).read_text() == text


def test_seeds_are_named_by_point_and_seed():
    names = {"point": np.array([0, 0, 1]), "clip": np.ones(3), "seed": np.array([0, 1, 0])}
    assert named(names, np.array([False, True, True])) == "point/seed 0/1, 1/0"
    assert named({"seed": np.arange(9)}, np.ones(9, bool)) == "seed 0, 1, 2, 3, 4, ..."
    assert named(names, np.zeros(3, bool)) == ""


def test_a_disk_that_is_full_loses_no_row(tmp_path):
    """Part of a row that did fit is taken back; the row is written when there is space again."""
    writer = CSVWriter()
    log = Log([writer])
    log.open(tmp_path, CONFIG, None)
    assert log.write(rows(10)) is None
    path, before = writer.path, writer.path.read_text()
    writer.path = tmp_path / "full"
    writer.path.symlink_to("/dev/full")
    assert "No space left" in log.write(rows(20))
    assert "No space left" in log.write(rows(30))
    writer.path = path
    assert path.read_text() == before
    assert log.flush() is None
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["10", "10", "20", "20", "30", "30"]


def test_unknown_writers_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"unknown writers 'jsnol'. Did you mean jsonl"):
        make_writers(["csv", "jsnol"])
    with pytest.raises(ValueError, match=r"unknown writers 'jsnol'. Did you mean jsonl"):
        purerl.RunOptions(writers=("jsnol",))


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'purerl\[tensorboard\]'"):
        purerl.RunOptions(writers=("csv", "tensorboard"))


def events(path):
    """Step, tag and value of each scalar in a file of TensorBoard's; and where a session begins."""
    from tensorboardX.proto import event_pb2

    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        if event.session_log.status == event_pb2.SessionLog.START:
            yield event.step, "start", None
        yield from ((event.step, x.tag, x.simple_value) for x in event.summary.value)


def test_tensorboard_has_a_run_a_seed(tmp_path):
    """What goes on after step 20 purges what is later than it, and not what is at it."""
    pytest.importorskip("tensorboardX")
    sessions = []
    for step, values in ((None, ((10, 1.5), (20, 2.5), (30, 9.0))), (20, ((30, 3.5),))):
        writer = TensorBoardWriter()
        writer.open(tmp_path, CONFIG, step)
        for at, value in values:
            writer.write(rows(at, value))
        writer.close()
        seeds = sorted((tmp_path / "tensorboard").iterdir())
        assert [path.name for path in seeds] == ["seed-000", "seed-001"]
        [path] = seeds[0].iterdir()
        sessions.append(list(events(path)))
        path.unlink()  # two within a second would have one name
    assert sessions[0] == [(10, "return", 1.5), (20, "return", 2.5), (30, "return", 9.0)]
    assert sessions[1] == [(21, "start", None), (30, "return", 3.5)]


def test_tensorboard_of_a_sweep_shows_no_hyper_parameters(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoardWriter()
    writer.open(tmp_path, CONFIG, None)
    swept = {"point": np.array([3, 12]), "activation": np.array(["tanh", "relu"])}
    writer.write(swept | rows(10))
    writer.close()
    seeds = sorted((tmp_path / "tensorboard").iterdir())
    assert [path.name for path in seeds] == ["point-003-seed-000", "point-012-seed-001"]
    [path] = seeds[0].iterdir()
    assert list(events(path)) == [(10, "return", 1.5)]


def test_wandb_offline(tmp_path, monkeypatch):
    """Begun, and gone on with under the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (None, 10):
        writer = WandbWriter()
        writer.open(tmp_path, CONFIG, step)
        writer.write(rows(10 if step is None else 20))
        writer.close()
    name = (tmp_path / "wandb-id.txt").read_text()
    files = list(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) >= 1
    assert any(b"seed-001/return" in file.read_bytes() for file in files)


def test_a_writer_of_ones_own_gets_every_row(tmp_path):
    class Mine:
        def open(self, folder, config, step):
            self.seen = [(folder.name, config["algorithm"], step)]

        def write(self, rows):
            self.seen.append(rows["step"].tolist())

        def close(self):
            self.seen.append("closed")

    mine = Mine()
    experiment = purerl.make_experiment(
        "a2c",
        "CartPole-v1",
        steps=64,
        num_envs=2,
        rollout_length=8,
        evaluations=2,
        evaluation_episodes=2,
        hidden_sizes=(8,),
    )
    purerl.run(experiment, seeds=2, out=tmp_path / "run", writers=("csv", mine), progress=False)
    assert mine.seen == [("run", "a2c", None), [32, 32], [64, 64], "closed"]
