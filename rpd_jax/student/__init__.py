"""The student's network and the convolutions it is made of. May import the ground (errors) and nothing else."""
