"""A run's own measurements: success of its student and of its teacher, with their videos."""

from collections.abc import Callable
from pathlib import Path

from rpd_jax.acting.episodes import Episodes, run_episodes, teacher_act
from rpd_jax.acting.odd_actions import OddActions
from rpd_jax.acting.seeds import episode_seeds
from rpd_jax.acting.stage import Stage
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.acting.video import write_filmstrip, write_video
from rpd_jax.run.records import read_teacher
from rpd_jax.run.whole_file import write_json
from rpd_jax.teachers import sees_frames


def evaluate_student(
    stage: Stage, state: TrainingState, last: bool, workdir: Path, check_stop: Callable[[], None]
) -> dict[str, float]:
    """Success of the mean action, from the same initial states at every evaluation of a run.

    One that would end the training (`eval.until`) goes on for `eval.final_episodes` more episodes, from other initial
    states than those of the final evaluation: of many evaluations of few episodes each, one reaches much by luck.

    Args:
        stage: whose environments are used; they are in the middle of episodes afterwards.
        state: whose student acts.
        last: the final evaluation has more episodes, other initial states and a video.
        workdir: of the run.
        check_stop: called once per step; may raise to leave early.

    Returns:
        As `Episodes.summary`.
    """
    config, params = stage.config, stage.learner.local_params(state.learner)

    def run(name: str, num_episodes: int, video_episodes: int = 0) -> Episodes:
        return run_episodes(
            stage.envs,
            lambda rgb, state, key: stage.learner.mean_action(params, rgb, state),
            num_episodes,
            episode_seeds(config.seed, name),
            video_episodes,
            check_stop,
            sees_frames=stage.learner.network.sees_frames,
        )

    if not last:
        episodes, until = run("evaluation", config.eval.episodes), config.eval.until
        if until and episodes.summary()["success"] >= until:
            episodes = episodes.joined(run("confirming evaluation", config.eval.final_episodes))
        return episodes.summary()
    episodes = run("final evaluation", config.eval.final_episodes, config.eval.video_episodes)
    if episodes.videos:
        write_video(workdir / "videos" / "student.mp4", episodes.videos)
        write_filmstrip(workdir / "videos" / "student.png", min(episodes.videos, key=len))
    return episodes.summary()


def measure_teacher(
    stage: Stage, workdir: Path, say: Callable[[str], None], check_stop: Callable[[], None]
) -> dict[str, float] | None:
    """Success of the teacher's own actions in the final evaluation's episodes; measured once per run.

    Args:
        stage: whose teacher acts in its environments.
        workdir: of the run, which keeps the result.
        say: told that it will take some time, and what is odd about the teacher's actions.
        check_stop: called once per step; may raise to leave early.

    Returns:
        As `Episodes.summary`, or None where there is no teacher or it is not to be measured.
    """
    path, config = workdir / "teacher.json", stage.config
    if path.exists():
        return read_teacher(path)
    if stage.labeller is None or not config.teacher.eval_episodes:
        return None
    say(f"Measuring the teacher over {config.teacher.eval_episodes} episodes.")
    odd = OddActions()
    episodes = run_episodes(
        stage.envs,
        teacher_act(stage.labeller.teacher, stage.labeller.instruction),
        config.teacher.eval_episodes,
        episode_seeds(config.seed, "final evaluation"),
        config.eval.video_episodes,
        check_stop,
        sees_frames=sees_frames(stage.labeller.teacher),
        on_actions=odd.see,
    )
    for sentence in odd.sentences():
        say(sentence)
    if episodes.videos:
        write_video(workdir / "videos" / "teacher.mp4", episodes.videos)
    write_json(path, episodes.summary())
    return episodes.summary()
