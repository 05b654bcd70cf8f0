"""English number words."""

_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)


def number_word(n: int) -> str:
    """A whole number from 0 to 1999 in words: 305 is "three hundred and five"."""
    small, tens = _SMALL.split(), _TENS.split()
    if n >= 1000:
        return "one thousand" + (f" {number_word(n - 1000)}" if n > 1000 else "")
    if n >= 100:
        rest = f" and {number_word(n % 100)}" if n % 100 else ""
        return f"{small[n // 100]} hundred{rest}"
    if n >= 20:
        return tens[n // 10] + (f"-{small[n % 10]}" if n % 10 else "")
    return small[n]
