"""The machinery behind the operators, in the order that a call passes through it.

| file            | what is there                                                                |
| --------------- | ---------------------------------------------------------------------------- |
| `messages.py`   | `@public`: what errors say, and names of other libraries                     |
| `listing.py`    | what `dir` shows                                                             |
| `arguments.py`  | checks that operators share                                                  |
| `geometry.py`   | windows over a grid: sizes, padding, and all arithmetic at borders (`Axis`)  |
| `packing.py`    | offsets in 2 or 4 bits                                                       |
| `resample.py`   | linear maps along one axis: interpolation, adaptive averages                 |
| `irregular.py`  | maxima over windows that are not evenly spaced                               |
| `calls.py`      | `Call`: the static parameters of one bound primitive                           |
| `primitives.py` | the primitives, their derivatives and batching                               |
| `convolution.py`| a convolution and its gradients, likewise                                    |
| `im2col.py`     | the three as products of matrices, for CPU                                   |
| `eager.py`      | calls outside of a program                                                   |
| `lowering.py`   | where a call runs: one device, or many                                       |
| `halo.py`       | what a shard takes from its neighbours                                       |
| `backends.py`   | which kernels run there, and the evidence                                    |
| `explain.py`    | what a program would run, and which backends there are                       |
| `modules.py`    | a Flax module class from a function                                          |
| `saving.py`     | indices in `flax.serialization`                                              |
| `state_dicts.py`| state dicts of PyTorch, divided into layers                                  |
| `weights.py`    | layers of Flax, and the tensors of PyTorch that they come from               |
"""
