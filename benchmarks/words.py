"""How figures are said in a sentence."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def percent(rate: float) -> str:
    """Return a fraction in whole per cent."""
    return str(round(100 * rate))  # no "-0"
