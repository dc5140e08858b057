"""Training: win back what a cut cost, fine-tune, or learn while pruning.

One loop for all of it (`loop.fit_`), from small parts:

    lesson      what the loop asks for: `Objective` (model, lesson, moment → terms of the loss) and
                `Hook` (before and after each step, further terms, parameters of its own with an
                optimizer of their own, state for checkpoints)
    objectives  supervised, and distillation from a teacher
    settings    `TrainSettings`, from YAML
    sampler     training data by position: order and augmentation follow from seed and position
    session     images, held-out images, folder and listeners: what all runs of a call share
    judging     held-out images, by which the weights that come out are chosen
    checkpoint  one file, written whole or not at all
    run, machine, identity   state of a run; accelerate; what makes a run the same run

A method of several phases calls `fit_` once per phase, with its own folder, and may change the
model in between: a finished phase gives its weights at once when the method is run again.

    report = fit_(model, images, objective, settings, folder=out / "search", hooks=[gates])

Images are an `ImageSet`, a tensor, a pair of tensors or a map-style data set. The verbs call it
through a `Session`; the short polish of `prune` (`polish`) is one with settings of its own.
"""

from secateur.training.polish import PolishReport, PolishSettings, polish_
from secateur.training.run_length import RunLength, parse_run_length

__all__ = ["PolishReport", "PolishSettings", "RunLength", "parse_run_length", "polish_"]
