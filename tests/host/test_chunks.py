"""One process's part of a run: chunks, signals, full disks, what it shows."""

import contextlib
import gc
import os
import signal
import subprocess

import nbclient
import nbformat
import numpy as np
import orbax.checkpoint
import pytest
from run_folders import NotedDriver, driven, final, read_rows
from test_resume import make

import purerl
from purerl.cli import main
from purerl.host.pacing import ChunkLength, Signals
from purerl.host.programs import Driver
from purerl.host.report.log import named
from purerl.host.report.progress import Progress
from purerl.host.store.checkpoint import Checkpoints, read_host
from purerl.host.store.folder import RunFolder


def a2c(**changes):
    """The driver of the run that most tests here train; it is compiled once."""
    return driven(share=(__name__, "a2c"), **changes)


def test_the_next_chunk_is_begun_before_the_last_one_is_read(tmp_path):
    """At a row of the log too, but where the best state is to be kept."""
    events: list[str] = []

    class Notes(NotedDriver):
        def advance(self, iterations):
            events.append("advance")
            return super().advance(iterations)

        def evaluate(self):
            events.append("evaluate")
            return super().evaluate()

        def read(self, report):
            events.append("read")
            return super().read(report)

    experiment = make("a2c", steps=384)  # 6 iterations, 2 rows
    options = {"seeds": 2, "progress": False}
    notes = driven(base=Notes, share=(__name__, 384))
    purerl.run(experiment, driver=notes, **options)
    one, row = ["advance", "read"], ["advance", "evaluate", "read"]
    assert events == ["advance", *one, *row, *one, *one, *row, "read"]
    events.clear()
    out = tmp_path / "run"
    purerl.run(experiment, out=out, keep_best=True, driver=notes, **options)
    assert events == ["advance", *one, *row, "read", "advance", *one, *row, "read"]


def test_a_chunk_is_calibrated_once_and_stored(tmp_path):
    options = {"seeds": 2, "out": tmp_path / "run", "progress": False}
    purerl.run(make("a2c", steps=64 * 4000, evaluations=1), chunk_seconds=0.05, **options)
    chunk = read_host(RunFolder(tmp_path / "run"))["chunk"]
    assert 1 < chunk <= 4000


def test_a_resumed_run_has_the_chunks_of_its_beginning(tmp_path):
    cut = a2c(chunk=3, at=2)
    options = {"seeds": 2, "progress": False}
    assert purerl.run(make("a2c"), out=tmp_path / "run", driver=cut, **options).stopped
    driver = a2c(chunk=0)  # to be measured
    purerl.resume(tmp_path / "run", progress=False, driver=driver)
    assert driver.chunks == [3, 2]  # of ten iterations, two rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_after_the_last_chunk_was_begun_is_not_forgotten(number, tmp_path):
    """The run is whole, but a sweep, or a script, does not go on."""

    def interrupt(row):
        if row["step"][0] == 640:
            os.kill(os.getpid(), number)

    options = {"seeds": 2, "out": tmp_path / "run", "progress": False, "driver": a2c()}
    try:
        result = purerl.run(make("a2c"), on_row=interrupt, **options)
    except purerl.Terminated as terminated:
        result = terminated.result
    assert result.stopped == signal.Signals(number).name
    assert result.returns.shape == (2, 2)
    assert purerl.resume(tmp_path / "run", progress=False).stopped is None


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As nohup and shells without job control want it (fault C12)."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = purerl.run(make("a2c"), seeds=2, progress=False, driver=a2c(at=3))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.stopped is None


def test_a_hook_sees_the_rows_adds_columns_and_ends_the_run(tmp_path):
    seen = []

    def hook(row):
        seen.append(row)
        if row["step"][0] >= 256:
            return purerl.STOP
        return {"double": 2 * row["step"], "one": 1.0}

    experiment = make("a2c", evaluations=10)
    options = {"seeds": 2, "progress": False, "driver": a2c()}
    result = purerl.run(experiment, out=tmp_path, on_row=hook, **options)
    assert result.stopped == "hook"
    rows = read_rows(tmp_path)
    assert [int(row["step"][0]) for row in seen] == [64, 128, 192, 256]
    assert {"step", "return", "entropy", "failed"} <= set(seen[0])
    assert [row["double"] for row in rows[:2]] == ["128", "128"]
    assert rows[-1]["double"] == "nan"
    assert len(result.steps) < 10
    again = purerl.resume(tmp_path, progress=False, driver=a2c())
    assert (again.stopped, len(again.steps)) == (None, 10)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (3, "on_row returned a int, wanted None, purerl.STOP, or a dict"),
        ({"x": np.zeros(3)}, r"column 'x' of shape \(3,\), wanted .* columns \[2\]"),
        ({"step": 1}, "column 'step'"),
    ],
    ids=str,
)
def test_what_a_hook_may_answer(answer, wanted):
    with pytest.raises((TypeError, ValueError), match=wanted):
        purerl.run(make("a2c"), seeds=2, on_row=lambda row: answer, progress=False, driver=a2c())


@pytest.mark.parametrize("when", ["begun", "written"])
def test_a_best_state_that_could_not_be_written_is_not_the_best(when, tmp_path, monkeypatch):
    """A later one that is better than what is kept takes its place; one with a NaN does not."""
    returns = iter([[3.0, 3.0], [9.0, 9.0], [4.0, 4.0], [5.0, 5.0], [np.nan, 2.0]])
    manager = orbax.checkpoint.CheckpointManager
    save, wait = manager.save, manager.wait_until_finished
    lost: list[int] = []  # what a thread could not write

    class InOrder(NotedDriver):
        def evaluate(self):
            return super().evaluate()._replace(mean_return=np.array(next(returns), np.float32))

    def full(self, iteration, *, metrics, **kwargs):
        if metrics == {"iqm": 9.0}:
            if when == "begun":
                raise OSError("No space left on device")
            lost.append(iteration)
        else:
            save(self, iteration, metrics=metrics, **kwargs)

    def full_later(self):
        if lost:
            lost.clear()
            raise OSError("No space left on device")
        wait(self)

    monkeypatch.setattr(manager, "save", full)
    monkeypatch.setattr(manager, "wait_until_finished", full_later)
    experiment = make("a2c", evaluations=5)
    out = tmp_path / "run"
    options = {"keep_best": True, "progress": False, "driver": a2c(base=InOrder)}
    assert purerl.run(experiment, seeds=2, out=out, **options).trouble is None
    with contextlib.closing(Checkpoints(out)) as checkpoints:
        assert checkpoints.find("best") == 8
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["10", "8"]


def test_a_writer_that_raises_does_not_end_a_run(tmp_path):
    class Broken:
        def open(self, folder, config, step):
            pass

        def write(self, rows):
            raise ZeroDivisionError("of a user")

        def close(self):
            raise KeyError("another")

    with pytest.warns(RuntimeWarning, match="Broken: KeyError: 'another'"):
        result = purerl.run(
            make("a2c"), seeds=2, out=tmp_path, writers=("csv", Broken()), progress=False
        )
    assert result.returns.shape == (2, 2)
    assert len(read_rows(tmp_path)) == 4


def test_a_run_stops_when_a_seed_fails_if_that_is_wished(tmp_path, capsys):
    experiment = make("a2c", learning_rate=1e38)
    options = {"seeds": 2, "out": tmp_path / "run", "driver": driven()}
    result = purerl.run(experiment, on_failure="stop", **options)
    assert (result.stopped, result.failed.tolist()) == ("failure", [True, True])
    shown = capsys.readouterr().err
    assert "seed 0, 1: an update was not finite by step" in shown
    assert "2 failed (seed 0, 1)" in shown
    assert len(result.steps) < 2
    assert ", 2 of them failed," in result.summary() or not len(result.steps)
    again = purerl.run(experiment, resume=True, **options)  # the others would go on
    assert again.stopped is None
    assert [row["failed"] for row in read_rows(tmp_path / "run")] == ["1"] * 4


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    purerl.run(make("a2c"), seeds=2, out=tmp_path / "run", progress=False)
    with RunFolder(tmp_path / "run").lock():
        for option in ("resume", "overwrite"):
            with pytest.raises(OSError, match="is in use by another process"):
                purerl.run(
                    make("a2c"), seeds=2, out=tmp_path / "run", progress=False, **{option: True}
                )
    purerl.run(make("a2c"), seeds=2, out=tmp_path / "run", progress=False, overwrite=True)


def test_a_folder_that_was_half_made_is_as_good_as_none(tmp_path):
    (tmp_path / "config.json.part").write_text('{"algo')
    purerl.run(make("a2c"), seeds=2, out=tmp_path, resume=True, progress=False)
    assert len(read_rows(tmp_path)) == 4


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    """Checkpoints in the background fail; when there is space again, they are whole, and nothing
    is left of those that were torn.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        experiment = make("a2c", steps=64 * 12)
        options = {"seeds": 2, "checkpoint_seconds": 0.0}
        purerl.run(experiment, out=tmp_path / "whole", progress=False, **options)

        class Fills(NotedDriver):
            def advance(self, iterations):
                if len(self.chunks) == 2:
                    with contextlib.suppress(OSError), (disk / "others").open("wb", 0) as file:
                        while file.write(bytes(4096)):
                            pass
                elif len(self.chunks) == 7:
                    (disk / "others").unlink()
                return super().advance(iterations)

        told = []
        monkeypatch.setattr(Progress, "say", lambda self, what: told.append(what))
        driver = driven(base=Fills, share=(__name__, 12))
        result = purerl.run(experiment, out=disk / "run", driver=driver, **options)
        assert any("No space left on device; the run goes on" in x for x in told), told
        assert result.trouble is None
        assert final(disk / "run") == final(tmp_path / "whole")
        names = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert names == ["11", "12"]
    finally:
        gc.collect()  # Orbax leaves coroutines behind; they are to end here, not in another test
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_chunk_is_as_long_as_was_wished():
    """Ten milliseconds an iteration: trials are doubled until they take long enough."""
    chunks = ChunkLength(1.0, longest=1000)
    assert chunks.next(1000) == 1
    chunks.measured(1, 5.0)  # the first execution is no measure
    for trial in (1, 2, 4, 8, 16, 32):
        assert (chunks.length, chunks.next(1000)) == (0, trial)
        chunks.measured(trial, 0.01 * trial)
    chunks.measured(7, 0.07)  # cut short by a row of the log
    assert (chunks.length, chunks.next(7)) == (0, 7)
    chunks.measured(64, 0.64)
    assert chunks.length == 100
    chunks = ChunkLength(1.0, longest=30)
    for _ in range(2):  # no chunk is longer than from one row to the next
        chunks.measured(30, 0.3)
    assert chunks.length == 30


@pytest.mark.parametrize(("left", "most"), [(10, 3), (9, 3), (1, 5), (1000, 499), (7, 1)])
def test_chunks_are_even(left, most):
    """A short one would leave the devices no time to run apart."""
    chunks, lengths = ChunkLength(1.0, longest=left, length=most), []
    while left - sum(lengths):
        lengths.append(chunks.next(left - sum(lengths)))
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-left // most)


@pytest.mark.parametrize(("training", "said"), [(False, "are compiled"), (True, "the chunk")])
def test_ctrl_c_says_what_is_waited_for(training, said, capfd):
    signals = Signals(1.0, None)
    signals.training = training
    with signals.caught():
        signal.raise_signal(signal.SIGINT)
    assert said in capfd.readouterr().err


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    """What was written until then is resumed."""

    class Twice(NotedDriver):
        def advance(self, iterations):
            report = super().advance(iterations)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                os.kill(os.getpid(), signal.SIGINT)
            return report

    options = {"seeds": 2, "progress": False, "checkpoint_seconds": 0.0}
    purerl.run(make("a2c"), out=tmp_path / "whole", driver=a2c(), **options)
    handler = signal.getsignal(signal.SIGINT)
    twice = a2c(base=Twice, at=4)
    with pytest.raises(KeyboardInterrupt):
        purerl.run(make("a2c"), out=tmp_path / "cut", driver=twice, **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert purerl.resume(tmp_path / "cut", progress=False, driver=a2c()).stopped is None
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


COMMAND = ["train", "a2c", "CartPole-v1", "--steps", "256", "--num-envs", "4", "--seeds", "2"]
COMMAND += ["--rollout-length", "16", "--evaluations", "2", "--evaluation-episodes", "2"]
COMMAND += ["--hidden-sizes", "8", "--no-progress"]


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    out, advance = str(tmp_path / "run"), Driver.advance

    def advance_and_end(self, iterations):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, iterations)

    monkeypatch.setattr(Driver, "advance", advance_and_end)
    assert main([*COMMAND, "--out", out]) == 143
    monkeypatch.undo()
    assert f"go on with: purerl train --resume {out}" in capsys.readouterr().out
    assert main(["train", "--resume", out, "--no-progress"]) == 0


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    """It tells, tries again, and the result is whole."""
    manager_type = orbax.checkpoint.CheckpointManager
    save, full = manager_type.save, []

    def no_space(self, *args, **kwargs):
        if full:
            raise ValueError("write failed: [Errno 28] No space left on device")
        return save(self, *args, **kwargs)

    monkeypatch.setattr(manager_type, "save", no_space)
    options = {"seeds": 2, "checkpoint_seconds": 0.0, "driver": a2c()}
    expected = purerl.run(make("a2c"), out=tmp_path / "whole", **options)
    assert expected.trouble is None
    full.append(1)
    capsys.readouterr()
    with pytest.warns(RuntimeWarning, match="No space left"):
        result = purerl.run(make("a2c"), out=tmp_path / "full", **options)
    assert "No space left on device; the run goes on" in capsys.readouterr().err
    assert "No space left" in result.trouble
    np.testing.assert_array_equal(result.returns, expected.returns)
    full.clear()  # the checkpoints are missing, so it begins again
    assert purerl.resume(tmp_path / "full", progress=False).trouble is None
    assert final(tmp_path / "full") == final(tmp_path / "whole")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main([*COMMAND, "--out", str(tmp_path / "run")]) == 2
    assert "cannot be written below" in capsys.readouterr().err


def test_rows_of_a_run_that_is_not_evaluated(tmp_path):
    """What happened in training is there all the same."""
    result = purerl.run(make("a2c", evaluations=0), seeds=2, out=tmp_path / "run", progress=False)
    assert result.returns.shape == (2, 0)
    rows = read_rows(tmp_path / "run")
    assert "return" not in rows[0]
    assert [int(row["step"]) for row in rows[::2]] == list(range(64, 641, 64))
    assert all(np.isfinite(float(row["entropy"])) for row in rows)


def test_means_of_the_log_are_those_of_the_pure_function(tmp_path):
    import jax

    experiment = make("a2c")
    purerl.run(experiment, seeds=2, out=tmp_path / "run", progress=False)
    rows = read_rows(tmp_path / "run")
    metrics = jax.jit(purerl.vectorize(experiment.build().train))(
        jax.random.split(jax.random.key(0), 2)
    ).metrics
    entropy = np.array(metrics.info["entropy"]).reshape(2, 2, 5).mean(axis=-1)  # [S, row]
    found = [[float(row["entropy"]) for row in rows[seed::2]] for seed in range(2)]
    np.testing.assert_allclose(found, entropy, rtol=1e-5)
    ended = np.array(metrics.episodes.ended).reshape(2, 2, 5).sum(axis=-1)
    assert [[int(row["train_episodes"]) for row in rows[seed::2]] for seed in range(2)] == (
        ended.tolist()
    )


def test_progress_names_failed_seeds_and_the_return(capsys):
    progress = Progress("a run", 1000, 0, True)
    progress.advance(100, np.array([np.nan, 2.0]), "")
    progress.advance(100, np.array([1.0, 2.0]), "1 failed (seed 1)")
    progress.say("seed 1: something")
    progress.evaluated([200], [np.array([7.0, 9.0])])
    which = np.arange(12) != 1
    assert named({"seed": np.arange(12)}, ~which) == "seed 1"
    progress.advance(800, np.ones(2), f"11 failed ({named({'seed': np.arange(12)}, which)})")
    progress.close()
    shown = capsys.readouterr().err
    assert "1 failed (seed 1)" in shown
    assert "training return 1.5" in shown
    assert "seed 1: something\n" in shown
    assert "return 8.0, 11 failed (seed 0, 2, 3, 4, 5, ...)" in shown
    assert "1.00k/1.00k" in shown


def test_unknown_options_of_a_run_are_named():
    with pytest.raises(TypeError, match=r"no option 'chunk_second'. Did you mean chunk_seconds"):
        purerl.run(make("a2c"), chunk_second=1.0)
    for name, value in (("keep", 0), ("chunk_seconds", 0.0), ("on_failure", "explode")):
        with pytest.raises(ValueError, match=name):
            purerl.RunOptions(**{name: value})


def test_a_notebook_has_a_live_curve(tmp_path):
    """One picture that is replaced, not one for each evaluation."""
    code = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + '/..']
import purerl, test_resume
result = purerl.run(test_resume.make("a2c", evaluations=3), seeds=2)
"""
    tests = os.path.dirname(__file__)
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code.format(tests=tests))],
        metadata={"kernelspec": {"name": "python3", "display_name": "python3"}},
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    outputs = notebook.cells[0].outputs
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) == 1
    assert any("step" in x.get("text", "") for x in outputs if x.output_type == "stream")
