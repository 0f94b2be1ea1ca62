"""The mathematics of the latent space energy-based prior model: no files, no printing, no command line.

energy       f(z) and the prior p(z) ∝ exp(f(z)) N(z; 0, σ²I)
langevin     short-run Langevin chains on any potential
generators   what a generator must answer; recurrent holds the text generators, decoding writes sentences with them;
             convolutional holds those of images, image_encoder turns them round
softmax      log-likelihood and gradient of a vocabulary-sized softmax, without keeping its matrix
inference    z given x
learner      one learning step: both chains, both gradients
likelihood   log p(x) by importance weighting, and exactly on a grid for z of one or two dimensions
proposals    where importance weighting looks for z
ais          the prior's normaliser by annealed importance sampling; metropolis makes its steps
latent_model   the whole model: sample, infer, score, save, load
random       one seed, many independent streams
"""
