"""Names with which a client of ours and a server of ours agree on random numbers, which openpi's protocol has not got.

A server whose metadata has SEEDED: 1 draws its samples from the random key and the number of the frame that a request
names, answers all of them at once, [samples, horizon, A], and in the environment's convention.
"""

SEEDED = "rpd/seeded"
KEY = "rpd/key"  # words of a JAX random key, uint32
FRAME = "rpd/frame"  # number of the frame
SAMPLES = "rpd/samples"  # actions drawn for it
STEPS = "rpd/steps"  # actions of each chunk, 1 if it is not named
