"""Names of the criteria by which channels stay, for options. Nothing else is imported here."""

MAGNITUDE, BATCH_NORM, TAYLOR, FOLD = "magnitude", "batch-norm", "taylor", "fold"
CRITERIA = [MAGNITUDE, BATCH_NORM, TAYLOR, FOLD]
