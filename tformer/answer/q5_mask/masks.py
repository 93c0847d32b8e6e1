"""The masks of question 5: the right one, and two with which a query sees what comes after it."""

from tformer.answer.parts import reaching, unmasked
from tformer.model import Formula, attention

RIGHT, NONE, FAR = "the mask", "none", "one too far"
MASKS: dict[str, Formula] = {RIGHT: attention, NONE: unmasked, FAR: reaching(1)}
