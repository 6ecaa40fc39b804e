"""Names of metrics that other rooms recognise; nothing here needs torch."""

CONDITIONAL = "conditional_"
"""How the names of likelihoods of x given its condition begin."""
