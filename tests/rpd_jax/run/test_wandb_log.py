"""Which run of Weights & Biases a run directory is."""

import shutil

from rpd_jax.run.wandb_log import run_id


def test_a_run_that_is_continued_is_the_same_and_one_begun_anew_is_another(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    first = run_id(run)
    assert run_id(run) == first and (run / "wandb_id").read_text() == first + "\n"
    shutil.rmtree(run)
    run.mkdir()  # as on another machine, at the same place
    assert run_id(run) != first


def test_a_file_that_was_cut_is_written_again(tmp_path):
    (tmp_path / "wandb_id").write_text("")
    assert run_id(tmp_path) == run_id(tmp_path) != ""
