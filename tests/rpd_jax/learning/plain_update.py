"""A whole update in plain float64 PyTorch, and a program that compares the learner's with it in float64.

JAX_ENABLE_X64=1 python plain_update.py
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import torch

from configs import default
from rpd_jax import settings
from rpd_jax.learning import schedules
from rpd_jax.learning.advantages import advantages_of
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.student.gaussian import gaussian_log_prob
from rpd_jax.student.networks import ActorCritic

TERMS = ("loss", "pg_loss", "v_loss", "entropy", "distill_loss", "approx_kl", "grad_norm")

# Several settings at once: each shows in a term of its own.
VARIATIONS = {
    "clipped value loss, entropy bonus, standard GAE, a critic that leaves the trunk alone": (
        {
            "algorithm": "rpd_bc",
            "student.value_stop_gradient": True,
            "ppo.clip_value_loss": True,
            "ppo.entropy_coef": 0.05,
            "ppo.finite_horizon": False,
            "ppo.gae_lambda": 0.95,
        },
        (9, 3),
    ),
    "raw advantages, tight clipping, no target KL, labels of each epoch": (
        {
            "algorithm": "rpd_l1",
            "teacher.refresh": "epoch",
            "ppo.normalize_advantages": False,
            "ppo.max_grad_norm": 0.1,
            "ppo.target_kl": 0.0,
            "ppo.learning_rate": 3e-3,
        },
        (6, 4),
    ),
    "floored PPD, a target KL that stops": (
        {"algorithm": "ppd", "distill.std_floor": 0.4, "ppo.target_kl": 0.2, "ppo.learning_rate": 3e-3},
        (6, 4),
    ),
}


def make_config(changes):
    config = default.get_config()
    config.profile = "paper"
    base = {"student.observation": "state", "student.state": "raw"}
    base |= {"env.num_envs": 4, "ppo.rollout_steps": 6, "ppo.update_epochs": 2, "ppo.num_minibatches": 3}
    config.update_from_flattened_dict(base | changes)
    return settings.resolve(config)


@functools.cache
def initial_params():
    """Of the student; the same whatever is set."""
    learner = Learner(ActorCritic.from_config(make_config({}).student), make_config({}))
    return jax.tree.map(np.array, learner.init(jax.random.key(0), None, np.zeros((1, 10), np.float32)).params)


def make_rollout(learner, params, shape, dtype):
    """Actions near the student's own, so that some ratios are clipped and some are not."""
    rng = np.random.default_rng(0)
    num_frames = shape[0] * shape[1]
    state = rng.normal(size=(num_frames, 10)).astype(np.float32)
    mean, log_std, values = learner.network.apply(params, None, state)
    actions = np.asarray(mean + jnp.exp(log_std) * rng.normal(size=mean.shape))
    logprobs = gaussian_log_prob(actions, mean, log_std)
    flags = rng.random((shape[0] + 1, shape[1])) < 0.2
    arrays = {
        "state": state,
        "actions": actions,
        "logprobs": logprobs + rng.normal(0.0, 0.2, num_frames),
        "values": values + rng.normal(0.0, 0.3, num_frames),
        "rewards": rng.normal(size=num_frames),
    }
    arrays = {name: np.asarray(x).reshape(*shape, *x.shape[1:]) for name, x in arrays.items()}
    labels = rng.normal(0.0, 0.5, (learner.label_sets, learner.num_samples, *shape, 7)) if learner.num_samples else None
    arrays |= {
        "dones": flags[:-1],
        "next_done": flags[-1],
        "next_value": rng.normal(size=shape[1]),
        "final_values": np.where(flags[1:], rng.normal(size=shape), 0.0),
        "teacher_actions": labels,
    }
    # The same numbers, whatever the type.
    arrays = {name: None if x is None else x.astype(np.float32).astype(dtype) for name, x in arrays.items()}
    return Rollout(rgb=None, **{name: None if x is None else jnp.asarray(x) for name, x in arrays.items()})


def plain_network(params, batch, stop_gradient):
    def dense(x, *names):
        layer = params
        for name in names:
            layer = layer[name]
        return x @ layer["kernel"] + layer["bias"]

    x = dense(dense(batch["state"], "trunk_0").tanh(), "trunk_1").tanh()
    critic_input = x.detach() if stop_gradient else x
    mean = dense(dense(x, "actor", "hidden").relu(), "actor", "output")
    value = dense(dense(critic_input, "critic", "hidden").relu(), "critic", "output")[:, 0]
    return mean, value


def plain_loss(params, batch, config):
    ppo = config.ppo
    mean, value = plain_network(params, batch, config.student.value_stop_gradient)
    student = torch.distributions.Normal(mean, params["log_std"].exp())
    log_ratio = student.log_prob(batch["actions"]).sum(-1) - batch["logprobs"]
    ratio = log_ratio.exp()
    advantages = batch["advantages"]
    if ppo.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    pg_loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - ppo.clip, 1 + ppo.clip)).mean()
    errors = (value - batch["returns"]) ** 2
    if ppo.clip_value_loss:
        clipped = batch["values"] + (value - batch["values"]).clamp(-ppo.clip, ppo.clip)
        errors = torch.maximum(errors, (clipped - batch["returns"]) ** 2)
    v_loss = 0.5 * errors.mean()
    entropy = student.entropy().sum(-1).mean()
    distill = torch.zeros(())
    if "labels" in batch:
        labels = batch["labels"]  # [S, B, A]
        if config.algorithm == "rpd_mse":
            distill = ((mean - labels[0]) ** 2).mean()
        elif config.algorithm == "rpd_l1":
            distill = (mean - labels[0]).abs().mean()
        elif config.algorithm == "rpd_bc":
            distill = -student.log_prob(labels[0]).sum(-1).mean()
        else:
            std = labels.std(0, correction=0).clamp_min(config.distill.std_floor)
            kl = torch.distributions.kl_divergence(student, torch.distributions.Normal(labels.mean(0), std)).sum(-1)
            distill = (kl * ratio.clamp_min(1 - ppo.clip)).mean()
    loss = pg_loss - ppo.entropy_coef * entropy + ppo.value_coef * v_loss + config.distill.coef * distill
    kl = ((ratio - 1) - log_ratio).mean()
    return loss, {"pg_loss": pg_loss, "v_loss": v_loss, "entropy": entropy, "distill_loss": distill, "approx_kl": kl}


def plain_samples(rollout, ppo):
    """The rollout's frames in float64; its advantages are those that are learnt from, float32 (test_advantages.py)."""
    advantages = advantages_of(rollout, ppo)
    arrays = {name: getattr(rollout, name) for name in ("state", "actions", "logprobs", "values")}
    arrays |= {"advantages": advantages, "returns": advantages + rollout.values}
    return {name: torch.tensor(np.asarray(x, np.float64)).flatten(0, 1) for name, x in arrays.items()}


def plain_minibatch(samples, rollout, indices, epoch):
    batch = {name: x[indices] for name, x in samples.items()}
    if rollout.teacher_actions is not None:
        labels = np.asarray(rollout.teacher_actions[epoch % len(rollout.teacher_actions)], np.float64)
        batch["labels"] = torch.tensor(labels.reshape(labels.shape[0], -1, 7)[:, indices])
    return batch


def plain_params(params):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True), params["params"])


def plain_update(params, rollout, order, config):
    """Returns the terms of each minibatch looked at, the optimiser's steps and the parameters in the end."""
    ppo = config.ppo
    params = plain_params(params)
    leaves = jax.tree.leaves(params)
    optimizer = torch.optim.Adam(leaves, ppo.learning_rate, eps=ppo.adam_eps)
    samples = plain_samples(rollout, ppo)
    rows, steps = [], 0
    for epoch, indices in enumerate(order):
        for minibatch in np.split(indices, ppo.num_minibatches):
            loss, terms = plain_loss(params, plain_minibatch(samples, rollout, minibatch, epoch), config)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.sqrt(sum((leaf.grad**2).sum() for leaf in leaves))
            terms |= {"loss": loss, "grad_norm": norm}
            rows.append([float(terms[name].detach()) for name in TERMS])
            if ppo.target_kl and terms["approx_kl"] > ppo.target_kl:
                return np.array(rows), steps, params
            for leaf in leaves:
                leaf.grad *= min(1.0, ppo.max_grad_norm / float(norm))
            optimizer.step()
            steps += 1
    return np.array(rows), steps, params


def make_order(config, shape):
    rng = np.random.default_rng(2)
    return np.stack([rng.permutation(shape[0] * shape[1]) for _ in range(config.ppo.update_epochs)]).astype(np.int32)


def prepare(name, dtype):
    """The learner of a variation, the student's first parameters and a rollout, in a floating point type."""
    changes, shape = VARIATIONS[name]
    config = make_config(changes)
    learner = Learner(ActorCritic.from_config(config.student), config)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), initial_params())
    return learner, params, make_rollout(learner, params, shape, dtype), make_order(config, shape)


def differences(name):
    """Of a whole update from the plain one: the largest relative one of each term, and of the parameters' changes."""
    learner, params, rollout, order = prepare(name, np.float64)
    expected, expected_steps, expected_params = plain_update(params, rollout, order, learner.config)
    state, metrics = learner.update(
        learner.init_from(params),
        rollout,
        jax.random.key(0),
        schedules.coefficients(learner.config, 0),
        permutations=order,
        per_minibatch=True,
    )
    found = {}
    for column, term in enumerate(TERMS):
        computed = np.asarray(metrics["minibatches"][term])[: len(expected)]
        found[term] = np.max(np.abs(computed - expected[:, column]) / np.maximum(np.abs(expected[:, column]), 1e-3))

    def change(new, old, plain):
        ours, theirs = np.asarray(new) - np.asarray(old), plain.detach().numpy() - np.asarray(old)
        return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12)

    changes = jax.tree.map(change, state.params["params"], params["params"], expected_params)
    found["parameters"] = max(jax.tree.leaves(changes))
    found["floored"] = float(metrics.get("teacher_std_floored", 0.0))
    if rollout.teacher_actions is not None:
        expected_floored = np.mean(np.asarray(rollout.teacher_actions).std(axis=1) < learner.config.distill.std_floor)
        found["expected floored"] = float(expected_floored)
    found["types"] = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(state.params)})
    steps = {"steps": int(metrics["optimizer_steps"]), "expected steps": expected_steps, "minibatches": order.size}
    return {key: value if isinstance(value, list) else float(value) for key, value in found.items()} | steps


if __name__ == "__main__":
    print(json.dumps({name: differences(name) for name in VARIATIONS}))
