"""The embedded benchmark: a generated stream of small tasks, and the small T5 that was pretrained
for it on a different mixture.
"""

import pathlib

T5_MINI = pathlib.Path(__file__).parent / "t5-mini"
