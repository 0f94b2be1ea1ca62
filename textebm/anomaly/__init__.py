"""Anomaly detection: what a model gives little probability to, it has not learned from.

The score of x is −log p(x, z) at a posterior sample z, up to a constant: energy(z) + ‖z‖²/2σ² − log p(x|z), in nats.
Left out are the prior's log Z and the Gaussian's ½ d log 2πσ², the same for every x. A larger score is more anomalous.
Source: Pang et al., NeurIPS 2020, section 4.4, after Zenati et al. 2018 and Kumar et al. 2019: a class of images is
held out of training, and is to be told from the others by the area under the precision–recall curve.

    scores.py      the parts of a score, of images and of sentences
    held_out.py    runs with one class held out: trained, scored at their last epochs, and their scores kept
    figures.py     what scores come to: areas, spreads over epochs and seeds, curves, one JSON object
"""
