"""Whole updates equal the expected numbers, and the learner's safety nets hold."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.student.networks import ActorCritic

DATA = Path(__file__).parents[2] / "data" / "ppo"
EXPECTED = np.load(DATA / "update.npz")
HYPER = json.loads((DATA / "update.json").read_text())
METRICS = ("loss", "pg_loss", "v_loss", "entropy", "distill_loss", "approx_kl", "grad_norm")
LAYERS = {
    "c1": ("image_encoder", "conv1"),
    "c2": ("image_encoder", "conv2"),
    "c3": ("image_encoder", "conv3"),
    "fc": ("image_encoder", "dense"),
    "a1": ("actor", "hidden"),
    "a2": ("actor", "output"),
    "v1": ("critic", "hidden"),
    "v2": ("critic", "output"),
}


def make_config(**changes):
    config = ConfigDict(
        {
            "algorithm": "rpd_mse",
            "student": {
                "observation": "rgb",
                "encoder": "nature",
                "image_size": 64,
                "initial_log_std": -0.5,
                "value_stop_gradient": False,
                "state_coef": 0.0,
                "critic": "shared",
                "state": "raw",
                "precision": "float32",
            },
            "ppo": {
                "update_epochs": HYPER["update_epochs"],
                "num_minibatches": HYPER["num_minibatches"],
                "learning_rate": HYPER["learning_rate"],
                "gamma": HYPER["gamma"],
                "gae_lambda": HYPER["gae_lambda"],
                "finite_horizon": HYPER["finite_horizon_gae"],
                "clip": HYPER["clip_coef"],
                "clip_value_loss": HYPER["clip_vloss"],
                "entropy_coef": HYPER["ent_coef"],
                "value_coef": HYPER["vf_coef"],
                "max_grad_norm": HYPER["max_grad_norm"],
                "target_kl": HYPER["target_kl"],
                "normalize_advantages": HYPER["norm_adv"],
                "advantage_std_floor": 0.0,
                "adam_eps": HYPER["adam_eps"],
                "critic_first": 0,
                "critic_continues": False,
                "bootstrap_success": True,
            },
            "teacher": {"refresh": "rollout"},
            "distill": {
                "coef": HYPER["distill_lambda"],
                "num_samples": 10,
                "std_floor": 0.0,
                "replay": 0,
                "replay_batch": 0,
                "replay_coef": 1.0,
                "replay_both": False,
                "augment": 0,
                "augment_ppo": False,
            },
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def make_learner(**changes):
    config = make_config(**changes)
    return Learner(ActorCritic.from_config(config.student), config)


def params_from_torch():
    """The given weights as parameters of the student: OIHW -> HWIO, [out, in] -> [in, out], CHW features -> HWC."""
    params = {"log_std": jnp.asarray(EXPECTED["params/logstd"][0])}
    for name, (module, layer) in LAYERS.items():
        weight = EXPECTED[f"params/{name}.weight"]
        if weight.ndim == 4:
            kernel = weight.transpose(2, 3, 1, 0)
        elif name == "fc":
            kernel = weight.reshape(256, 64, 4, 4).transpose(2, 3, 1, 0).reshape(-1, 256)
        else:
            kernel = weight.T
        bias = jnp.asarray(EXPECTED[f"params/{name}.bias"])
        params.setdefault(module, {})[layer] = {"kernel": jnp.asarray(kernel), "bias": bias}
    return {"params": params}


def params_to_torch(params):
    params = params["params"]
    weights = {"logstd": params["log_std"]}
    for name, (module, layer) in LAYERS.items():
        kernel = np.asarray(params[module][layer]["kernel"])
        if kernel.ndim == 4:
            weight = kernel.transpose(3, 2, 0, 1)
        elif name == "fc":
            weight = kernel.reshape(4, 4, 64, 256).transpose(3, 2, 0, 1).reshape(256, -1)
        else:
            weight = kernel.T
        weights |= {f"{name}.weight": weight, f"{name}.bias": params[module][layer]["bias"]}
    return {name: np.asarray(weight) for name, weight in weights.items()}


def make_rollout(num_samples=1, **changes):
    arrays = {
        "rgb": EXPECTED["obs"],
        "state": None,
        "teacher_actions": EXPECTED["teacher_samples"][None, :num_samples] if num_samples else None,
        "logprobs": EXPECTED["logprobs"],
    }
    names = ("actions", "values", "rewards", "dones", "next_done", "next_value", "final_values")
    arrays |= {name: EXPECTED[name] for name in names}
    arrays |= changes
    return Rollout(**{name: None if array is None else jnp.asarray(array) for name, array in arrays.items()})


def coefficients(learner, **changes):
    config = learner.config
    values = {
        "distill": config.distill.coef,
        "replay": config.distill.replay_coef,
        "learning_rate": config.ppo.learning_rate,
    }
    return Coefficients(**values | changes)


@pytest.mark.parametrize("algorithm", ["ppo", "rpd_mse", "rpd_l1", "rpd_bc", "ppd"])
def test_update_equals_expected_numbers(algorithm):
    learner = make_learner(algorithm=algorithm)
    state = learner.init_from(params_from_torch())
    order = EXPECTED["permutations"].astype(np.int32)
    state, metrics = learner.update(
        state,
        make_rollout(learner.num_samples),
        jax.random.key(0),
        coefficients(learner),
        permutations=order,
        per_minibatch=True,
    )
    expected = EXPECTED[f"{algorithm}/minibatch_metrics"]
    # A ReLU's input may round to the other side of zero: the gradient then jumps (ppo's norm, at the fourth minibatch,
    # by 2e-5), and some terms differ by that later on, here in the second epoch.
    tolerances = np.where(np.arange(6) < 3, 2e-6, 5e-5)
    for column, name in enumerate(METRICS):
        difference = np.abs(metrics["minibatches"][name] - expected[:, column])
        assert np.all(difference <= tolerances + 1e-4 * np.abs(expected[:, column])), (name, difference)
    assert metrics["optimizer_steps"] == state.optimizer_steps == 6
    for name, weight in params_to_torch(state.params).items():
        final = {key: EXPECTED[f"{algorithm}/final/{name}/{key}"] for key in ("head", "l2", "delta_l2")}
        # After such a jump, single weights differ by a part of an Adam step (3e-4).
        np.testing.assert_allclose(weight.ravel()[:16], final["head"], rtol=1e-4, atol=5e-5, err_msg=name)
        assert np.linalg.norm(weight) == pytest.approx(float(final["l2"]), rel=1e-4), name
        change = np.linalg.norm(weight.astype(np.float64) - EXPECTED[f"params/{name}"].reshape(weight.shape))
        assert change == pytest.approx(float(final["delta_l2"]), rel=3e-3), name


# The claims below do not depend on the encoder: a student that sees ten numbers compiles in a fraction of the time.
STATES = np.random.default_rng(1).normal(size=(10, 6, 10)).astype(np.float32)
ORDER = np.stack([np.random.default_rng(seed).permutation(60) for seed in range(2)]).astype(np.int32)


NO_STEP = {"learning_rate": 0.0}


def make_state_learner(**changes):
    return make_learner(**({"student.observation": "state"} | changes))


@functools.cache
def state_params():
    return make_state_learner().init(jax.random.key(0), None, STATES[0]).params


def update(learner, rollout=None, changes=None, **kwargs):
    """`changes`: of coefficients."""
    rollout = make_rollout(learner.num_samples, state=STATES) if rollout is None else rollout
    kwargs = {"permutations": ORDER, "per_minibatch": True} | kwargs
    state = learner.init_from(state_params())
    return learner.update(state, rollout, jax.random.key(0), coefficients(learner, **(changes or {})), **kwargs)


def unchanged(state):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params, state_params())))


def test_target_kl_ends_the_update_before_stepping():
    """The expected place comes from a run without a target: its first minibatch whose KL exceeds it."""
    on_policy = make_state_learner(**{"ppo.target_kl": 0.0, "ppo.learning_rate": 3e-3})
    params = state_params()
    actions, logprobs, _ = on_policy.policy_step(params, None, STATES.reshape(60, 10), jax.random.key(1))
    rollout = make_rollout(state=STATES, actions=actions.reshape(10, 6, 7), logprobs=logprobs.reshape(10, 6))
    full = update(on_policy, rollout)[1]
    kls = np.asarray(full["minibatches"]["approx_kl"])
    assert kls[0] < 1e-5 and full["optimizer_steps"] == 6 and full["target_kl_stop"] == 0
    target = 0.5 * float(kls.max())
    stop = int(np.argmax(kls > target))
    assert 0 < stop < 5
    learner = make_state_learner(**{"ppo.target_kl": target, "ppo.learning_rate": 3e-3})
    state, metrics = update(learner, rollout)
    assert metrics["optimizer_steps"] == state.optimizer_steps == stop and metrics["target_kl_stop"] == 1
    seen = np.asarray(metrics["minibatches"]["approx_kl"])
    np.testing.assert_allclose(seen[: stop + 1], kls[: stop + 1], rtol=1e-4, atol=1e-7)
    assert np.isnan(seen[stop + 1 :]).all()
    assert metrics["approx_kl"] == pytest.approx(float(seen[: stop + 1].mean()), rel=1e-5)
    at_once = update(make_state_learner(**{"ppo.target_kl": 1e-9}), make_rollout(state=STATES))
    assert unchanged(at_once[0]) and at_once[1]["optimizer_steps"] == 0


def test_nonfinite_numbers_are_named_and_never_reach_the_parameters():
    learner = make_state_learner()
    inputs = ("actions", "logprobs", "values", "rewards", "final_values", "teacher_actions")
    for field, name in [*zip(inputs, inputs, strict=True), ("next_value", "pg_loss")]:
        bad = np.array(getattr(make_rollout(), field))
        bad.ravel()[-1] = np.inf if field == "next_value" else np.nan
        rollout = make_rollout(state=STATES, **{field: bad})
        assert learner.nonfinite_input(rollout) == (name if field in inputs else None)
        state, metrics = update(learner, rollout)
        assert learner.nonfinite_term(metrics) == name
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert metrics["optimizer_steps"] < 6 and metrics["target_kl_stop"] == 0
        assert field not in inputs or unchanged(state)
    assert learner.nonfinite_input(make_rollout(state=STATES)) is None
    state, metrics = update(learner)
    assert learner.nonfinite_term(metrics) is None and not unchanged(state)


def test_an_update_that_meets_a_nonfinite_number_leaves_the_state_as_it_was():
    """Its second minibatch is bad: the first one has been stepped on by then."""
    learner = make_state_learner(**{"ppo.target_kl": 0.0})
    logprobs = EXPECTED["logprobs"].copy()
    logprobs.ravel()[ORDER[0, 30]] = -200.0  # finite, but the ratio of the densities is not
    state, _ = update(learner)
    before = jax.device_get(state)
    after, metrics = learner.update(
        state,
        make_rollout(state=STATES, logprobs=logprobs),
        jax.random.key(0),
        coefficients(learner),
        permutations=ORDER,
        per_minibatch=True,
    )
    assert learner.nonfinite_term(metrics) in ("pg_loss", "approx_kl")
    assert metrics["optimizer_steps"] == 1 and np.isfinite(metrics["minibatches"]["loss"][0])
    assert before.updates == 1 and before.optimizer_steps == 6
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(new, old)


def test_teacher_that_repeats_itself_breaks_ppd_unless_its_std_is_floored():
    rollout = make_rollout(state=STATES, teacher_actions=np.repeat(EXPECTED["teacher_samples"][None, :1], 10, axis=1))
    learner = make_state_learner(algorithm="ppd")
    state, metrics = update(learner, rollout)
    assert learner.nonfinite_term(metrics) == "distill_loss" and unchanged(state)
    learner = make_state_learner(**{"algorithm": "ppd", "distill.std_floor": 0.1})
    _, metrics = update(learner, rollout)
    assert learner.nonfinite_term(metrics) is None and metrics["teacher_std_floored"] == 1


def test_a_replayed_label_that_is_not_finite_is_named():
    learner = make_state_learner(**{"distill.replay": 120, "distill.replay_batch": 60})
    rollout = make_rollout(state=STATES, teacher_actions=np.full((1, 1, 10, 6, 7), np.nan, np.float32))
    replay = learner.extend_replay(learner.create_replay(7, 10), rollout)
    state, metrics = update(learner, replay=replay)
    assert learner.nonfinite_term(metrics) == "replay_loss" and unchanged(state)


def test_schedules_change_without_recompilation():
    learner = make_state_learner(**{"ppo.target_kl": 0.0})
    half = update(learner, None, {"distill": 0.5})[1]["minibatches"]
    programs = learner._compiled.update._cache_size()
    none = update(learner, None, {"distill": 0.0})[1]["minibatches"]
    ppo = update(make_state_learner(**{"algorithm": "ppo", "ppo.target_kl": 0.0}))[1]["minibatches"]
    assert half["loss"][0] == pytest.approx(float(none["loss"][0] + 0.5 * half["distill_loss"][0]), rel=1e-5)
    np.testing.assert_allclose(none["loss"], ppo["loss"], rtol=1e-4)
    assert unchanged(update(learner, None, NO_STEP)[0])
    assert learner._compiled.update._cache_size() == programs


def test_labels_of_each_epoch_are_those_that_its_minibatches_see():
    """Without a step, an epoch's distillation terms are those of a rollout that has its labels only."""
    learner = make_state_learner(**{"teacher.refresh": "epoch", "ppo.target_kl": 0.0})
    assert learner.label_sets == HYPER["update_epochs"] == 2
    sets = EXPECTED["teacher_samples"][:2, None]
    both = update(learner, make_rollout(state=STATES, teacher_actions=sets), NO_STEP)[1]["minibatches"]
    for epoch in range(2):
        rollout = make_rollout(state=STATES, teacher_actions=sets[epoch : epoch + 1])
        only = update(learner, rollout, NO_STEP)[1]["minibatches"]
        steps = slice(3 * epoch, 3 * epoch + 3)
        np.testing.assert_allclose(both["distill_loss"][steps], only["distill_loss"][steps], rtol=1e-6)
        assert not np.allclose(both["distill_loss"][3 - 3 * epoch :][:3], only["distill_loss"][3 - 3 * epoch :][:3])


def test_random_order_visits_every_sample_once_per_epoch():
    """Without a step, the mean over an epoch's minibatches is the mean over the rollout, whatever the order."""
    learner = make_state_learner(**{"ppo.normalize_advantages": False, "ppo.target_kl": 0.0})
    terms = update(learner, None, NO_STEP, permutations=None)[1]["minibatches"]
    sorted_terms = update(learner, None, NO_STEP, permutations=np.tile(np.arange(60), (2, 1)))[1]["minibatches"]
    for name in ("distill_loss", "v_loss", "pg_loss"):
        epochs = np.asarray(terms[name]).reshape(2, 3)
        assert not np.allclose(epochs[0], epochs[1])
        np.testing.assert_allclose(epochs.mean(axis=1), np.mean(sorted_terms[name]), rtol=1e-4)


def test_same_key_same_parameters():
    learner = make_state_learner()
    first, second = (update(learner, permutations=None)[0] for _ in range(2))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


def test_state_students_learn_their_labels():
    labels = np.tanh(STATES @ np.random.default_rng(0).normal(size=(10, 7)) / 2).astype(np.float32)[None, None]
    learner = make_state_learner(**{"ppo.update_epochs": 30, "ppo.target_kl": 0.0, "ppo.learning_rate": 1e-3})
    rollout = make_rollout(state=STATES, teacher_actions=labels)
    terms = update(learner, rollout, {"distill": 10.0}, permutations=None)[1]["minibatches"]
    losses = np.asarray(terms["distill_loss"])
    assert losses[-3:].mean() < 0.3 * losses[:3].mean()


def test_replayed_frames_train_the_student():
    """No advantage, no value loss, λ = 0: what is learnt comes from the replayed labels alone."""
    learner = make_learner(
        **{
            "student.observation": "rgb+state",
            "student.encoder": "small",
            "student.image_size": 40,
            "distill.replay": 80,
            "distill.replay_batch": 30,
            "distill.augment": 2,
            "distill.augment_ppo": True,
            "ppo.value_coef": 0.0,
            "ppo.target_kl": 0.0,
            "ppo.update_epochs": 6,
            "ppo.learning_rate": 2e-3,
        }
    )
    frames = EXPECTED["obs"][:, :, :40, :40]
    zeros = {name: np.zeros_like(EXPECTED[name]) for name in ("rewards", "values", "next_value", "final_values")}
    rollout = make_rollout(
        rgb=frames, state=STATES, teacher_actions=np.full((1, 1, 10, 6, 7), 0.5, np.float32), **zeros
    )
    replay = learner.create_replay(action_dim=7, state_dim=10)
    state = learner.init(jax.random.key(0), frames[0], STATES[0])
    replayed_only = coefficients(learner, distill=0.0)
    unlabelled = rollout.replace(teacher_actions=None)
    state, metrics = learner.update(state, unlabelled, jax.random.key(0), replayed_only, replay)
    assert metrics["replay_loss"] == 0.0, "an empty replay adds nothing"
    replay = learner.extend_replay(replay, rollout)
    assert replay.count == 60
    np.testing.assert_array_equal(replay.frames[:60], frames.reshape(60, 40, 40, 3))
    state, metrics = learner.update(state, rollout, jax.random.key(0), replayed_only, replay, per_minibatch=True)
    losses = np.asarray(metrics["minibatches"]["replay_loss"])
    assert losses[-1] < 0.2 * losses[0]


def test_frames_of_another_size_are_resized_once_for_update_and_replay():
    """Doubled pixels, seen by a student of half the size, are the same update as the frames themselves."""
    config = {"student.encoder": "small", "distill.replay": 60, "distill.replay_batch": 6, "ppo.update_epochs": 1}
    learner = make_learner(**config)
    params = learner.init(jax.random.key(0), EXPECTED["obs"][0]).params
    losses = []
    for frames in (EXPECTED["obs"], EXPECTED["obs"].repeat(2, axis=2).repeat(2, axis=3)):
        rollout = make_rollout(rgb=frames)
        replay = learner.extend_replay(learner.create_replay(7, 0), rollout)
        assert replay.frames.shape == (60, 64, 64, 3)
        state = learner.init_from(params)
        losses.append(learner.update(state, rollout, jax.random.key(0), coefficients(learner), replay)[1]["loss"])
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-4)


def test_frames_left_over_by_the_minibatches_are_left_out():
    """60 frames in 7 minibatches of 8: the last 4 of the order do not matter, the others do."""
    learner = make_state_learner(**{"ppo.num_minibatches": 7, "ppo.update_epochs": 1})
    order = np.arange(60, dtype=np.int32)[None]
    losses = []
    for place in (None, 59, 0):  # index t·6 + n; 59 is the last step of the last environment
        labels = EXPECTED["teacher_samples"][:1].reshape(60, 7).copy()
        if place is not None:
            labels[place] += 1.0
        rollout = make_rollout(state=STATES, teacher_actions=labels.reshape(1, 1, 10, 6, 7))
        losses.append(np.asarray(update(learner, rollout, permutations=order)[1]["minibatches"]["distill_loss"]))
    assert losses[0].shape == (7,)
    np.testing.assert_array_equal(losses[0], losses[1])
    assert losses[0][0] != losses[2][0]


def test_dagger_is_imitation_alone():
    """The same labels with other rewards, values and densities: the same student, whose critic has learnt nothing."""
    learner = make_state_learner(algorithm="dagger")
    state, metrics = update(learner)
    # Such densities would end an update of rpd_mse: the ratio overflows.
    others = {"rewards": -100.0 * EXPECTED["rewards"], "values": 7.0 * EXPECTED["values"]}
    others["logprobs"] = np.full_like(EXPECTED["logprobs"], -200.0)
    other, other_metrics = update(learner, make_rollout(state=STATES, **others))
    assert learner.nonfinite_term(other_metrics) is None
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    new, old = state.params["params"], state_params()["params"]
    jax.tree.map(np.testing.assert_array_equal, new["critic"], old["critic"])
    assert not np.array_equal(new["actor"]["output"]["kernel"], old["actor"]["output"]["kernel"])
    # Its loss is λ times rpd_mse's distillation term, and its first minibatch's is the same number.
    np.testing.assert_allclose(metrics["loss"], learner.config.distill.coef * metrics["distill_loss"], rtol=1e-6)
    same = update(make_state_learner(algorithm="rpd_mse"))[1]
    first = metrics["minibatches"]["distill_loss"][0]
    assert first == same["minibatches"]["distill_loss"][0] and first > 0.0
    assert metrics["pg_loss"] == metrics["v_loss"] == metrics["entropy"] == metrics["approx_kl"] == 0.0
    assert metrics["optimizer_steps"] == 6


def test_the_guess_of_the_state_joins_the_loss():
    """Imitation's loss and its weight times the guess's error; frames of a replay count once there are some."""
    weight = 0.25
    settings = {"algorithm": "dagger", "student.encoder": "small", "student.state_coef": weight}
    settings |= {"distill.replay": 80, "distill.replay_batch": 20, "ppo.update_epochs": 1, "ppo.num_minibatches": 1}
    learner = make_learner(**settings)
    rollout = make_rollout(state=STATES)
    state = learner.init(jax.random.key(0), EXPECTED["obs"][0], STATES[0])
    replay = learner.create_replay(7, STATES.shape[-1])
    arguments = state, rollout, jax.random.key(0), coefficients(learner)
    frames, states = EXPECTED["obs"].reshape(60, 64, 64, 3), STATES.reshape(60, -1)

    def guess_error(states):
        return float(np.mean(learner.network.apply(state.params, frames, states, method="look")[3]))

    new, metrics = learner.update(*arguments, replay)
    # Of an update's replay the rollout's own frames are a part: twenty of the sixty, drawn at random.
    expected = learner.config.distill.coef * (metrics["distill_loss"] + metrics["replay_loss"])
    np.testing.assert_allclose(metrics["loss"], expected + weight * metrics["state_loss"], rtol=1e-5)
    assert metrics["state_loss"] == pytest.approx(guess_error(states), rel=0.3)
    assert not np.array_equal(new.params["params"]["state_error"]["guess"]["kernel"], 0.0)
    # Without a replay the error is that of the rollout's frames, exactly.
    alone = make_learner(**settings | {"distill.replay": 0})
    _, metrics = alone.update(*arguments)
    np.testing.assert_allclose(metrics["state_loss"], guess_error(states), rtol=1e-4)
    # An empty ring, which has zeros to give, does not count.
    unlabelled = rollout.replace(teacher_actions=None)
    _, metrics = learner.update(state, unlabelled, *arguments[2:], replay)
    np.testing.assert_allclose(metrics["state_loss"], guess_error(states), rtol=1e-4)
    # A guess that is not finite undoes the update, by name.
    nowhere = make_rollout(state=np.full_like(STATES, np.inf))
    same, metrics = learner.update(state, nowhere, *arguments[2:], replay)
    assert learner.nonfinite_term(metrics) == "state_loss"
    jax.tree.map(np.testing.assert_array_equal, same.params, state.params)
