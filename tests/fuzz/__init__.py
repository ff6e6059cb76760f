"""A differential fuzzer: random calls of every public function, against its definition.

A call has a function, settings, a shape, a type, a layout, a backend and a transformation of JAX.
One compiled program runs it for an array of every kind at once (`kinds.py`), and returns the
results, the gradient, and the gradient of the gradient. Each element is compared with what the
definition says (`functions.py`, `operators.py`): the same bits where an element is selected or
moved, and what rounding explains where elements are added. PyTorch answers the same calls where it
has them.

    python -m tests.fuzz --minutes 5 --seed 1
"""

import pathlib
import sys

# The tests import one another by name: `import oracle`.
if (_tests := str(pathlib.Path(__file__).parent.parent)) not in sys.path:
    sys.path.insert(0, _tests)
