"""Training small SegNets on real data that comes with scikit-learn: `python -m jaxunpool train`.

| file             | what it holds                                                        |
| ---------------- | -------------------------------------------------------------------- |
| `scenes.py`      | the data: handwritten digits over photographs, made on the device    |
| `loop.py`        | a run: its configuration, its state, the step that leads to the next |
| `checkpoints.py` | a run's folder: saving, resuming, refusing what is not its own       |
| `metrics.py`     | global and class accuracy, mIoU, boundary F1                         |
| `figures.py`     | predictions, confusion, gradients and scores over time               |
| `train.py`       | the command that trains one decoder                                  |
| `compare.py`     | the command that trains them all                                     |
"""
