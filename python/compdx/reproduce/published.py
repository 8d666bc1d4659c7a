"""The numbers of CompD's paper (Li et al., ACML 2023, tables 1 to 5), to print beside ours."""

from __future__ import annotations

# By scheme, then by network. Accuracies in percent; "effective" pictures of 5,000 seeds times 10 steps.
ACCURACY = {
    "prune": {"vgg11": (93.12, 92.78), "resnet18": (95.80, 95.80), "densenet121": (96.16, 95.82)},
    "quant": {"vgg11": (92.90, 92.78), "resnet18": (95.66, 95.76), "densenet121": (96.16, 95.16)},
}
EFFECTIVE = {
    "prune": {"vgg11": 1731, "resnet18": 1959, "densenet121": 1417},
    "quant": {"vgg11": 767, "resnet18": 554, "densenet121": 2751},
}
COVERAGE = {"vgg11": (1636, 1731), "resnet18": (1955, 1959), "densenet121": (1305, 1417)}
"""Effective pictures without and with neuron coverage; pruning only."""

REPAIR = {
    "prune": {
        "vgg11": {"accuracy": (92.78, 92.82), "effective": (1731, 636), "unseen": (829, 533)},
        "resnet18": {"accuracy": (95.80, 95.74), "effective": (1959, 617), "unseen": (991, 477)},
        "densenet121": {"accuracy": (95.82, 95.92), "effective": (1417, 513), "unseen": (617, 514)},
    },
    "quant": {
        "vgg11": {"accuracy": (92.78, 92.86), "effective": (767, 0), "unseen": (389, 236)},
        "resnet18": {"accuracy": (95.76, 95.64), "effective": (554, 0), "unseen": (310, 219)},
        "densenet121": {"accuracy": (95.16, 94.74), "effective": (2751, 167), "unseen": (1450, 330)},
    },
}
FGSM = {
    "prune": {
        "vgg11": ((57.90, 25.46, 15.00), (61.12, 35.00, 26.20)),
        "resnet18": ((53.40, 35.84, 24.42), (64.44, 53.84, 51.26)),
        "densenet121": ((60.34, 31.60, 19.84), (65.84, 49.22, 39.86)),
    },
    "quant": {
        "vgg11": ((59.24, 27.96, 16.64), (61.90, 33.84, 22.48)),
        "resnet18": ((59.92, 40.18, 25.32), (67.06, 54.44, 44.04)),
        "densenet121": ((57.78, 23.72, 15.10), (68.88, 51.64, 38.14)),
    },
}
"""Accuracy under FGSM at 2, 8 and 16 grey levels, before and after repair."""

FGSM_ORIGINAL = {
    "vgg11": (59.26, 26.30, 15.34),
    "resnet18": (58.96, 41.24, 27.24),
    "densenet121": (59.50, 32.36, 20.74),
}
EPSILONS = (2, 8, 16)
