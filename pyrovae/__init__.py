"""Variational autoencoders as Pyro programs, with log-likelihoods that carry their error."""
