"""A plain PyTorch PPO update with the RPD-MSE term, eager, as its users write it: the yardstick of the benchmark."""

import math

import torch
from torch import nn


class TorchStudent(nn.Module):
    """The student with the NatureCNN encoder, in PyTorch's layouts."""

    def __init__(self, image_size: int, action_dim: int = 7):
        super().__init__()
        convolutions = [nn.Conv2d(3, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        self.convolutions = nn.Sequential(
            *(layer for conv in convolutions for layer in (conv, nn.ReLU())), nn.Flatten()
        )
        with torch.no_grad():
            num_features = self.convolutions(torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.dense = nn.Sequential(nn.Linear(num_features, 256), nn.ReLU())
        self.actor = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, action_dim))
        self.critic = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1))
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.5))

    def forward(self, rgb):
        pixels = rgb.permute(0, 3, 1, 2).to(self.log_std.dtype) / 255.0
        features = self.dense(self.convolutions(pixels))
        return self.actor(features), self.log_std, self.critic(features)[:, 0]


def gaussian_log_prob(actions, mean, log_std):
    scaled = (actions - mean) / log_std.exp()
    return (-0.5 * scaled**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def minibatch_loss(student, batch):
    """PPO's loss (clip 0.2, value coefficient 0.5) plus the RPD-MSE term, with λ = 1."""
    mean, log_std, value = student(batch["rgb"])
    ratio = (gaussian_log_prob(batch["actions"], mean, log_std) - batch["logprobs"]).exp()
    advantages = batch["advantages"]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    pg_loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
    v_loss = 0.5 * ((value - batch["returns"]) ** 2).mean()
    return pg_loss + 0.5 * v_loss + ((mean - batch["labels"]) ** 2).mean()


def update(student, optimizer, samples, permutations, num_minibatches):
    """All epochs and minibatches over samples, tensors [T·N, ...], in the order of permutations [epochs, T·N]."""
    for order in permutations:
        for indices in order.chunk(num_minibatches):
            loss = minibatch_loss(student, {name: array[indices] for name, array in samples.items()})
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            optimizer.step()
