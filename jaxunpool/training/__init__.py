"""Training SegNets, on data that comes with scikit-learn or on a user's own images.

| file             | what it holds                                                        |
| ---------------- | -------------------------------------------------------------------- |
| `scenes.py`      | the data: handwritten digits over photographs, made on the device    |
| `dataset.py`     | folders of images and masks, checked before training                 |
| `images.py`      | a run on them: loading, augmentation, weights to start from          |
| `segment.py`     | images of any size through a trained network, in tiles               |
| `loop.py`        | a run: its configuration, its state, the step that leads to the next |
| `checkpoints.py` | a run's folder: saving, resuming, refusing what is not its own       |
| `metrics.py`     | global and class accuracy, mIoU, boundary F1                         |
| `figures.py`     | predictions, confusion, gradients and scores over time               |
| `train.py`       | the command that trains one decoder                                  |
| `compare.py`     | the command that trains them all                                     |
| `predict.py`     | the command that segments images                                     |
"""
